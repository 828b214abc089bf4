"""Portraits: pictures of dressed random people in any pose, light and quality, made to train landmark networks on.

`studio` holds what all portraits of a model share, `wardrobe` what people wear and what grows on them, `backdrop` what
is behind and before them, `faults` what cameras and files do to a picture, and `portrait` draws and renders them.
"""
