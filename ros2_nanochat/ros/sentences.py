"""The old home of `SentenceSplitter`, which needs no ROS."""

from ros2_nanochat.robot.sentences import SentenceSplitter

__all__ = ['SentenceSplitter']
