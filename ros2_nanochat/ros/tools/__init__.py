"""The robot's services, actions, topics and parameters as tools of its model."""
