"""One robot, without ROS: its conversation, its camera frames, and its files on disk."""
