"""A camera in a process of its own: publishes frames at a rate until it is ended, and says how many.
Arguments: topic, width, height, rate.
"""

import signal
import sys
import time

import numpy as np
import rclpy
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import Image


def main(topic, width, height, rate):
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    node = rclpy.create_node('test_camera')
    publisher = node.create_publisher(
        Image, topic, QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
    )
    frame = Image(height=height, width=width, encoding='rgb8', step=3 * width)
    frame.data.frombytes(
        np.random.default_rng(0).integers(0, 256, 3 * width * height, dtype=np.uint8).tobytes()
    )
    frame.header.frame_id = 'camera'
    going = [True]
    signal.signal(signal.SIGINT, lambda *_: going.clear())
    count, begin = 0, time.monotonic()
    while going:
        frame.header.stamp = node.get_clock().now().to_msg()
        publisher.publish(frame)
        count += 1
        time.sleep(max(0.0, begin + count / rate - time.monotonic()))
    print(count, count / (time.monotonic() - begin), flush=True)


if __name__ == '__main__':
    main(sys.argv[1], *map(int, sys.argv[2:4]), float(sys.argv[4]))
