"Every public name, in the order of the layers: `from fastai_contrastive.all import *`"
from fastai_contrastive.distributed import *
from fastai_contrastive.losses import *
from fastai_contrastive.heads import *
from fastai_contrastive.memory import *
from fastai_contrastive.views import *
from fastai_contrastive.data import *
from fastai_contrastive.encoder import *
from fastai_contrastive.lending import *
from fastai_contrastive.core import *
from fastai_contrastive.lessons import *
from fastai_contrastive.objectives import *
from fastai_contrastive.pretext import *
from fastai_contrastive.evaluation.features import *
from fastai_contrastive.evaluation.knn import *
from fastai_contrastive.evaluation.linear import *
from fastai_contrastive.plots import *
from fastai_contrastive.recipes import *
