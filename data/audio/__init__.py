"""Audio of any format to samples: mono float32 at 16 kHz, whole, in blocks or packets.

`reading` is what others call; `decoder`, `ffmpeg` and `containers` are below it.
"""
