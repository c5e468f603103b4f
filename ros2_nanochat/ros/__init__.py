"""The ROS 2 node and its client: topics, services and actions wired to the library."""
