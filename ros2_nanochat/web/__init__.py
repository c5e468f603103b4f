"""The web page: a client of the ROS interface that shows robots in a browser."""
