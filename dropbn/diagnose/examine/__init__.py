"""One examination of a model: what is in it, what is wrong with it, what helps.

It is for somebody whose model is good in training and bad in test mode, and who does not know why. `examine`
calls the other tools of `dropbn.diagnose` in turn; take those if you know what you want to measure. The
command `dropbn examine` prints the examination, and `dropbn.page` draws it as one HTML file.
"""

from dropbn.diagnose.examine.examination import Examination
from dropbn.diagnose.examine.steps import STEPS, examine

__all__ = ["STEPS", "Examination", "examine"]
