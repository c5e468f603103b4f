"""One robot, without ROS: its conversation, its camera frames, what it keeps on disk."""
