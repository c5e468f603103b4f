"""The form of an answer: from what the caller asks for to a mask over the vocabulary at each step.

Knows no ROS, no templates and no engine.
"""
