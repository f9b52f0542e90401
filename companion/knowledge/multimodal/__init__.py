from companion.knowledge.multimodal._speech import log_mel, mel_filters
from companion.knowledge.multimodal._whisper import (
    SignalToText, SpeechTokens, Whisper, suppress, transcribe, whisper)
