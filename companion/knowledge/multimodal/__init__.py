r"""Pictures, sound and text: how they become sequences, meet, and are aligned.

* **Pictures**: :func:`patches` and :class:`PatchEmbedding`, :class:`ResidualBlock`,
  :class:`EfficientNetLite` with :func:`efficientnet_lite0`.
* **Two towers**: :class:`DualEncoder`, :func:`clip_loss` (in chunks, and across processes) with
  :func:`clip_gradient`, :func:`siglip_loss` with :func:`siglip_bias`.
* **The common space**: :func:`zero_shot`, :func:`ensemble`, :func:`recall_at`,
  :func:`modality_gap`, :func:`shift_gap`.
* **Fusion**: :func:`late_fusion`, :class:`TensorFusion`, :class:`LowRankFusion`;
  :class:`CrossModal`, :class:`SingleStream`, :func:`mixed_attention`, :func:`modality_share`;
  :func:`modality_mask` for what may be missing.
* **Matching**: :func:`itm_negatives`, :func:`itm_loss`.
* **From signals to text**: :class:`SignalToText`; speech with :func:`mel_filters`,
  :func:`log_mel`, :class:`Whisper`, :func:`whisper`, :func:`transcribe`, :func:`suppress`,
  :class:`SpeechTokens`; :func:`ctc_loss`, :func:`ctc_greedy`, :func:`collapse`,
  :func:`word_errors`.

Row :math:`i` of one modality belongs to row :math:`i` of the other. Losses are means over pairs, in
nats.

Book: :doc:`/book/knowledge/multimodal`.
"""

from companion.knowledge.multimodal._contrastive import (
    DualEncoder,
    clip_gradient,
    clip_loss,
    siglip_bias,
    siglip_loss,
)
from companion.knowledge.multimodal._ctc import collapse, ctc_greedy, ctc_loss, word_errors
from companion.knowledge.multimodal._fusion import (
    CrossModal,
    LowRankFusion,
    SingleStream,
    TensorFusion,
    late_fusion,
    mixed_attention,
    modality_mask,
    modality_share,
)
from companion.knowledge.multimodal._images import (
    EfficientNetLite,
    PatchEmbedding,
    ResidualBlock,
    efficientnet_lite0,
    patches,
)
from companion.knowledge.multimodal._space import (
    ensemble,
    itm_loss,
    itm_negatives,
    modality_gap,
    recall_at,
    shift_gap,
    zero_shot,
)
from companion.knowledge.multimodal._speech import log_mel, mel_filters
from companion.knowledge.multimodal._whisper import (
    SignalToText,
    SpeechTokens,
    Whisper,
    suppress,
    transcribe,
    whisper,
)

__all__ = [
    "CrossModal",
    "DualEncoder",
    "EfficientNetLite",
    "LowRankFusion",
    "PatchEmbedding",
    "ResidualBlock",
    "SignalToText",
    "SingleStream",
    "SpeechTokens",
    "TensorFusion",
    "Whisper",
    "clip_gradient",
    "clip_loss",
    "collapse",
    "ctc_greedy",
    "ctc_loss",
    "efficientnet_lite0",
    "ensemble",
    "itm_loss",
    "itm_negatives",
    "late_fusion",
    "log_mel",
    "mel_filters",
    "mixed_attention",
    "modality_gap",
    "modality_mask",
    "modality_share",
    "patches",
    "recall_at",
    "shift_gap",
    "siglip_bias",
    "siglip_loss",
    "suppress",
    "transcribe",
    "whisper",
    "word_errors",
    "zero_shot",
]
