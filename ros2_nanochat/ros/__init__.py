"""The ROS 2 node and its client: connects topics, services and actions to the library."""
