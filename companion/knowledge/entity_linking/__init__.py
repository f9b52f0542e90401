from companion.knowledge.entity_linking._crf import *
from companion.knowledge.entity_linking._crf import __all__
