"""The callbacks for events of publishers and subscriptions, which Humble's rclpy has in another module."""

from __future__ import annotations

try:
    from rclpy.event_handler import PublisherEventCallbacks, SubscriptionEventCallbacks
except ModuleNotFoundError:
    from rclpy.qos_event import PublisherEventCallbacks, SubscriptionEventCallbacks

__all__ = ['PublisherEventCallbacks', 'SubscriptionEventCallbacks', 'no_events']


def no_events() -> SubscriptionEventCallbacks:
    """Callbacks of a subscription whose events are not looked at.

    By default rclpy's executor waits for them, and with Fast DDS a message that has not been taken wakes it
    each time.
    """
    return SubscriptionEventCallbacks(use_default_callbacks=False)
