"""Which of some languages in Latin letters a text is in, by its function words.

Articles, pronouns and prepositions are a third or more of running text in these languages, whatever
it is about. Languages of other scripts are told by their letters (`scorers.degenerate`).
"""

import re
from types import MappingProxyType

_WORD = re.compile(r"[^\W\d_]+")

# The commonest function words of each, by our own choice; a word may stand in several lists.
# Letters by themselves are what an apostrophe leaves.
_LISTS = """
english: the of and to a in is that it for you on with as are this be or your can not have by an
  from will at if we i they which their but was how what there these when do no so me my has all
  one more about some don t s
german: der die das und zu in den von ist mit sich des nicht ein eine einen dem auf für es im als
  auch wie sie ich wir ihr oder aber an werden wird kann wenn zum zur sind bei um
french: le la les de des du et à un une est en que qui pour dans ce il elle je vous nous sur pas
  avec au aux par plus se sont ou mais votre cette ne peut si être d l c n qu s
spanish: el la los las de del y a un una es en que por para con se no su lo al como más o pero
  este esta son si muy te tu yo puede sus le hay sobre cuando también
italian: il lo la i gli le di del della e a un una è in che per con si non su al come più o ma
  questo questa sono se da dal nel alla puoi può anche dei delle ti
portuguese: o a os as de do da dos das e um uma é em que por para com se não seu sua no na ao como
  mais ou mas este esta são você pode também nos nas pelo quando isso
dutch: de het een en van in is dat op te met voor zijn niet je ik er aan om ook als maar bij of
  dit die u we naar kan wordt worden uit hun door wat heeft
"""
FUNCTION_WORDS = MappingProxyType(
  {
    name: frozenset(words.split())
    for name, words in re.findall(r"^(\w+):((?:.|\n )*)", _LISTS, re.MULTILINE)
  }
)
_LEAST = 0.2  # share of function words; nine of ten English answers have .25 to .6
_LEAD = 1.5  # times the share of the next language: Spanish and Portuguese have words in common


def language_of(text: str) -> str | None:
  """Return the language of `FUNCTION_WORDS` that a text is in; None where that is not plain."""
  words = _WORD.findall(text.lower())
  if not words:
    return None
  share = {
    name: sum(word in known for word in words) / len(words)
    for name, known in FUNCTION_WORDS.items()
  }
  best, second = sorted(share, key=lambda name: -share[name])[:2]
  is_plain = share[best] >= _LEAST and share[best] >= _LEAD * share[second]
  return best if is_plain else None
