"One pass for the task and for the first view: `ContrastiveCallback(share=True)`"
import pytest
import matplotlib
matplotlib.use('Agg')
from utils import *
from fastai.callback.mixup import MixUp
from fastai_contrastive.core import ViewsOnly
from fastai_contrastive.data import synth_dls
from fastai_contrastive.losses import nt_xent
from fastai_contrastive.encoder import *
from fastai_contrastive.guest import TermOnly, frozen_stats
from fastai_contrastive.views import Views

pytestmark = pytest.mark.usefixtures('strict')


def fit(learn):
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)

def shared_learn(make, cbs=(), bs=8, **kwargs):
    set_seed(0)
    dls = synth_dls(size=32, bs=bs, n=bs)
    set_seed(1)
    return make(dls, [ContrastiveCallback(SimCLR(dim=8, hidden=16), **kwargs), *cbs])

def labels_learn(dls, cbs):
    return Learner(dls, xresnet18(n_out=dls.c, widen=.25), opt_func=SGD, cbs=cbs)
def task_learn(dls, cbs):
    return pretext_learner(dls, create_encoder('xresnet_narrow', nf=32, blocks=1), Rotation(), opt_func=SGD, cbs=cbs)

@pytest.mark.parametrize('make', [labels_learn,task_learn])
def test_a_shared_pass_is_the_first_view(make):
    "Loss and gradient are those of a hand-written step, in which the learner's pass is made once"
    learn,got = shared_learn(make, share=True, weight=.5),{}
    class Look(Callback):
        order = 100
        def before_batch(self): got['xb'],got['y'] = (o[0].as_subclass(Tensor).clone() for o in (self.learn.xb,self.learn.yb))
        def after_backward(self):
            got['g'] = torch.cat([p.grad.flatten() for p in get_encoder(self.learn.model).parameters()])
            raise CancelFitException()
    class Views:
        def __call__(self, x): return [x*0, x.flip(-1)]
    learn.simclr.views = Views()
    clean = {}
    class Clean(Callback):
        order = -10
        def before_batch(self): clean['x'] = self.learn.xb[0].as_subclass(Tensor).clone()
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-2, cbs=[Look(),Clean()])
    obj,m = learn.simclr.objective,learn.model
    m.zero_grad()
    m.train()
    enc = as_encoder(get_encoder(m))
    f = enc(got['xb'])
    pred = m(got['xb'])
    with frozen_stats(enc): other = enc(clean['x'].flip(-1))
    loss = learn.loss_func(pred, got['y']) + .5*nt_xent(*obj.project(torch.cat([f,other])).chunk(2), temp=obj.temp)
    loss.backward()
    g = torch.cat([p.grad.flatten() for p in enc.parameters()])
    torch.testing.assert_close(got['g'], g, rtol=2e-4, atol=2e-5)

def test_sharing_a_pass_leaves_no_ears():
    learn = shared_learn(task_learn, share=True)
    with learn.no_bar(), learn.no_logging(): learn.fit(2, 1e-3)
    assert learn.model[0]._note is None and learn.simclr._heard is None
    learn = shared_learn(labels_learn, share=True)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    assert not any(o._forward_hooks for o in learn.model.modules())
    assert 'share=True' in repr(learn.simclr) and deepcopy(learn.simclr).share

@pytest.mark.parametrize('what,make,kwargs,cbs', [
    ('MixUp mixes', labels_learn, {}, lambda: [MixUp()]),
    ('for 8 images', lambda dls,cbs: pretext_learner(dls, create_encoder('xresnet_narrow', nf=32, blocks=1),
        Rotation(all_four=True), cbs=cbs), {}, list),
    ('no task', lambda dls,cbs: Learner(dls, ViewsOnly(create_encoder('xresnet_narrow', nf=32, blocks=1)),
        loss_func=TermOnly(), cbs=cbs), {}, list)])
def test_passes_that_cannot_be_shared(what, make, kwargs, cbs):
    learn = shared_learn(make, cbs(), share=True, **kwargs)
    with pytest.raises(ValueError, match=what): fit(learn)

def test_what_cannot_share_a_pass_says_so_at_once():
    with pytest.raises(ValueError, match='dl= feeds'): ContrastiveCallback(SimCLR(), dl=[], share=True)
    with pytest.raises(ValueError, match='way of its own'): ContrastiveCallback('densecl', share=True)

@pytest.mark.parametrize('make', [labels_learn,task_learn])
@pytest.mark.parametrize('share', [False,True])
def test_a_pass_is_saved(make, share):
    "Images through the encoder's first layer in a step: the learner's own pass, and those of the views that are left"
    learn,seen = shared_learn(make, share=share),[]
    first = next(o for o in learn.model.modules() if isinstance(o, nn.Conv2d))
    was = first.forward
    def counted(x):
        if learn.training: seen.append(len(x))
        return was(x)
    first.forward = counted
    fit(learn)
    assert seen==([8,8] if share else [8,16])

def test_the_first_view_of_a_shared_pass_is_not_made():
    "It is drawn, so that the others are those of a callback that does not share"
    seen = {}
    class Seen(Views):
        def _make(self, x, ps, scale=None):
            seen.setdefault(share, []).append((len(ps), res := super()._make(x, ps, scale)))
            return res
    for share in (False,True):
        learn = shared_learn(task_learn, share=share, views=Seen())
        set_seed(2)
        fit(learn)
    (n,a),(m,b) = seen[False][0],seen[True][0]
    assert (n,m)==(2,1) and torch.equal(a[1], b[0])
