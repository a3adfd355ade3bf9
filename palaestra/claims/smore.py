"""SMORe: from a few controlled and many random episodes, scores lead to goals where hindsight with a reward does not.

Episodes of a maze with any start and any goal, a tenth of whose steps are the controller's, are learnt from with goals
in hindsight by both arms: paid for reaching them, or scored. Judged is how often a goal is reached within an episode.
"""

from palaestra.claims.claim import Claim, Scale
