"""The model: encoders, adaptor, Qwen3 and its cache, phoneme head; `asr` joins them."""
