"A run that diverges is stopped, and the right loss and step are named"
import math

import pytest, torch
from fastai.vision.all import Callback, CrossEntropyLossFlat, GradientAccumulation, Learner, SGD, nn, set_seed
from fastai_contrastive.core import ContrastiveCallback, create_encoder
from fastai_contrastive.data import synth_dls
from fastai_contrastive.divergence import Diverged, StopOnDivergence
from fastai_contrastive.objectives import SimCLR
from utils import CPUMixed

class Spoil(Callback):
    "Makes the loss, or a gradient, of step `at` infinite"
    order = 2
    def __init__(self, at, what='loss'): self.at,self.what = at,what
    def after_loss(self):
        if self.what=='loss' and self.train_iter==self.at: self.learn.loss_grad = self.loss_grad*math.inf
    def after_backward(self):
        if self.what=='gradient' and self.train_iter==self.at: next(self.learn.model.parameters()).grad.fill_(math.nan)

def learner(*cbs):
    set_seed(0)
    enc = create_encoder('xresnet_narrow', nf=16, blocks=1)
    dls = synth_dls(size=16, bs=8, n=100)
    return Learner(dls, nn.Sequential(enc, nn.Linear(enc.nf, 10)), loss_func=CrossEntropyLossFlat(), opt_func=SGD, cbs=cbs)

def stopped(learn, epochs=1):
    "What it says, and whether the weights are good"
    with learn.no_bar(), learn.no_logging(), pytest.raises(Diverged) as e: learn.fit(epochs, 1e-3)
    return str(e.value),all(torch.isfinite(o).all() for o in learn.model.parameters())

@pytest.mark.parametrize('what,why', [('loss','the loss of task is'), ('gradient','the gradient of 0.body.0.0.weight')])
@pytest.mark.parametrize('every,late', [(None,False), (1,False), (5,True), (100,True)])
def test_step_and_weights(what, why, every, late):
    "Step 3 of twelve: looked at at once the weights are those before; later they are not, and both is said"
    said,good = stopped(learner(Spoil(3, what), StopOnDivergence(every)))
    assert f'at step 3 (epoch 1): {why}' in said, said
    if late: assert not good and 'steps later, and the weights are spoilt' in said
    else: assert good and 'The weights are those of the step before' in said

@pytest.mark.parametrize('every', [1,4])
def test_how_late(every):
    "Within `every` steps"
    learn = learner(Spoil(5), StopOnDivergence(every))
    stopped(learn)
    assert 5<=learn.train_iter<5+every

def test_with_a_scaler():
    "An infinite gradient is the scaler's own matter; a loss is not, however late one looks"
    for every in (1,3):
        learn = learner(Spoil(2), CPUMixed(torch.float32), StopOnDivergence(every))
        said,_ = stopped(learn)
        assert 'at step 2' in said and 2<=learn.train_iter<2+every

def test_a_term_is_named():
    class Odd(SimCLR):
        n = 0
        def loss(self, z, t, y):
            self.n += 1
            return super().loss(z, t, y)*(math.nan if self.n>3 else 1)
    said,good = stopped(learner(ContrastiveCallback(Odd(dim=8), name='odd'), StopOnDivergence()))
    assert 'at step 3 (epoch 1): the loss of odd is nan' in said and good

def test_accumulated():
    "A batch of several to a step is looked at as well"
    said,good = stopped(learner(Spoil(3), GradientAccumulation(32), StopOnDivergence()))
    assert 'at step 3' in said and good

@pytest.mark.parametrize('every', [0,-1,2.5,True,'5'])
def test_refused(every):
    with pytest.raises(ValueError, match='every is a number of steps'): StopOnDivergence(every)

def test_a_good_run_is_left_alone():
    learn = learner(StopOnDivergence(3))
    with learn.no_bar(), learn.no_logging(): learn.fit(2, 1e-3)
