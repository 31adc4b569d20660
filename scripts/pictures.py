"Draw the README's pictures: `python scripts/pictures.py`"
import sys
from pathlib import Path
from fastai_contrastive.all import *

root = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(root/'nbs/results'))
import demo as results, keeps, imagenette
from shared import read_rows
from fastai_contrastive.evaluation.factors import drawn_factors
from fastai_contrastive.report.figures import Report

dest = root/'nbs/images'
dest.mkdir(exist_ok=True)
show_views(synth_dls(size=64, labelled=False), Views(n=5), n_images=3, seed=3).savefig(dest/'views.png', dpi=80,
    bbox_inches='tight')
runs = results.read()
title = f'What a linear model reads from frozen features (%, mean of {len(runs)} seeds)'
plot_factors(results.means(runs), title).savefig(dest/'factors.png', dpi=110, bbox_inches='tight')

kept = keeps.means(read_rows(root/'nbs/results/keeps-32px'))
fig = plot_factors({k:{f:v[f] for f in drawn_factors} for k,v in kept.items()}, 'What a linear model reads (%)')
fig.savefig(dest/'keeps.png', dpi=90, bbox_inches='tight')
Report(imagenette.here).plot_curve(size=(5.4,3.4)).savefig(dest/'worth.png', dpi=110, bbox_inches='tight')
