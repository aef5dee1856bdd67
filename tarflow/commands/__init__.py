"""The commands of `python -m tarflow`, one file each; none imports torch before it is called.

`checkpoint` and `table` hold what several of them share.
"""
