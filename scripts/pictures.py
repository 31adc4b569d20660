"Draw the README's picture: `python scripts/pictures.py`"
from pathlib import Path
from fastai_contrastive.all import *

dest = Path(__file__).resolve().parents[1]/'nbs/images/views.png'
fig = show_views(synth_dls(size=64, labelled=False), Views(n=5), n_images=3, seed=3)
dest.parent.mkdir(exist_ok=True)
fig.savefig(dest, dpi=80, bbox_inches='tight')
