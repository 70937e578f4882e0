"""The literal strings of the prompt; `prompt.py` puts them together."""

IM_START = "<|im_start|>"
IM_END = "<|im_end|>"
SYSTEM = "system\nYou are a Multilingual Speech Recognition Model."
USER = "user\n"
INSTRUCTION = "\nTranscribe the speech into text."
HINTS = " Contextual hints: {}."
ASSISTANT = "assistant\n"
TEXTS = (SYSTEM, USER, INSTRUCTION, HINTS.format("a, b"), ASSISTANT)
"""The plain texts of the template, which a tokenizer should spell in few tokens."""
