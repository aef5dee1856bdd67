"""Recordings where no device could make them."""


def do_and_repeat(work, *_):
    """Stand in for `device.recorded`: do the work, and do it again at each replay."""
    work()
    return work
