"""A video becomes one head in motion. Nothing else in `fitting` depends on this layer but the command line.

`tracking` is the whole way from a video to a track: `key_frames` finds who is in it, with skin as bright as `exposure`
thinks likely; `follow` goes from frame to frame; `lid_opening` tells blinks; then all frames become one problem, with
the prior of `smoothing` on how heads move and the block tridiagonal solver of `banded`. `motion` is the track as a
value, and how steady it is; `files` is what of it goes to disk for other programs. `frames` reads and writes videos,
`synthetic` films people whose truth is known.
"""
