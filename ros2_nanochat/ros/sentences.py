"""The former module of `SentenceSplitter`, kept for old imports."""

from ros2_nanochat.robot.sentences import SentenceSplitter

__all__ = ['SentenceSplitter']
