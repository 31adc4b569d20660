"Looking at terms: what `TermGradients` measures, that it touches nothing, and what `plot_terms` draws"
import pytest
import matplotlib
matplotlib.use('Agg')
from utils import *
from fastai.callback.training import GradientAccumulation
from fastai_contrastive.balance import *
from fastai_contrastive.pretext.rotation import *
from fastai_contrastive.pretext_term import *
from fastai_contrastive.sight import *
from fastai_contrastive.term import *

pytestmark = pytest.mark.usefixtures('strict')

def two_terms(w=.5): return [term(w), PretextTerm(Rotation(), .25)]

def test_the_run_is_the_same_with_and_without():
    plain,seen = (fit(make_learn([*two_terms(), *cbs]), 2) for cbs in ([],[TermGradients(every=1)]))
    assert torch.equal(ws(plain.model), ws(seen.model))
    assert [torch.equal(a, b) for a,b in zip(plain.simclr.heads, seen.simclr.heads)]==[True]*len(plain.simclr.heads)

def test_what_is_measured_adds_up_to_the_step():
    "The gradients of the losses, times their weights, sum up to what the encoder is given"
    got = []
    class Hand(Callback):
        order = TermGradients.order+.1
        def after_loss(self):
            if not self.training: return
            ts = self.learn._grab_cbs(TermCallback)
            g = ts[0].encoder_grads([ts[0]._task_loss, *[c._raw for c in ts]])
            got.append((g[0]+.5*g[1]+.25*g[2], g))
        def after_backward(self): got[-1] += (torch.cat([p.grad.flatten().clone() for p in self.learn.model[0].parameters()]),)
    learn = fit(make_learn([*two_terms(), TermGradients(every=1), Hand()]))
    f,c = learn.term_gradients.frame,learn.term_gradients.cosines
    for i,(total,g,grad) in enumerate(got):
        assert torch.allclose(total, grad, atol=1e-5)
        assert np.allclose(f[f.step==i].norm, g.norm(dim=1), rtol=1e-5)
        cos = [float(F.cosine_similarity(g[a], g[b], 0)) for a,b in ((0,1),(0,2),(1,2))]
        assert np.allclose(c[c.step==i].cosine, cos, atol=1e-5)
    assert list(f.loss[:3])==['task','simclr','rotation'] and list(f.weight[:3])==[1.,.5,.25]
    assert list(zip(c.a, c.b))[:3]==[('task','simclr'),('task','rotation'),('simclr','rotation')]

@pytest.mark.parametrize('every', [1,2,4])
def test_how_often(every):
    learn = fit(make_learn([term(), TermGradients(every=every)]), 2)
    n = 2*len(learn.dls.train)
    assert sorted(set(learn.term_gradients.frame.step))==list(range(0, n, every))

def test_under_accumulation_and_alone():
    learn = fit(make_learn([term(), TermGradients(every=1), GradientAccumulation(16)]))
    assert len(learn.term_gradients.frame)==2*len(learn.dls.train)
    plain = fit(make_learn([term(), GradientAccumulation(16)]))
    assert torch.equal(ws(plain.model), ws(learn.model))
    alone = fit(make_learn([term(), PretextTerm(Rotation()), TermGradients(every=1)], model=ViewsOnly(encoder()), loss_func=TermOnly(), metrics=None))
    assert set(alone.term_gradients.frame.loss)=={'simclr','rotation'}

def encoder(): return create_encoder(body())

def test_steps_without_a_term_and_a_frozen_encoder_are_not_measured():
    learn = fit(make_learn([term(lambda pct: float(pct>=.5)), TermGradients(every=1)]), 2)
    n = 2*len(learn.dls.train)
    assert set(learn.term_gradients.frame.step)==set(range(n//2, n))
    learn = make_learn([term(), TermGradients(every=1)], splitter=two_groups)
    learn.model[0].requires_grad_(False)
    assert not len(fit(learn).term_gradients.frame)

def test_validation_is_not_looked_at():
    learn = fit(make_learn([term(), TermGradients(every=1)]))
    was = learn.term_gradients.frame
    with quietly(learn): learn.validate()
    assert was.equals(learn.term_gradients.frame)

def test_bad_input():
    for o in (0, .5, None):
        with pytest.raises(ValueError, match='every is a number of steps'): TermGradients(every=o)
    with pytest.raises(ValueError, match='this Learner has none'): fit(make_learn(TermGradients()))
    with pytest.raises(ValueError, match='call fit first'): plot_terms(make_learn(term()))

def test_pictures():
    epochs = ['task','accuracy','simclr_loss','rotation_loss','rotation_accuracy']
    def _titles(learn, *args): return [o.get_title() for o in plot_terms(learn, *args).axes]
    assert _titles(fit(make_learn(), 2))==epochs[:2]
    learn = fit(make_learn(two_terms()), 2)
    assert _titles(learn)==[*epochs,'loss','weight'] and _titles(learn, 'accuracy')==epochs[:2]
    learn = fit(make_learn([*two_terms(Balanced(every=2)), TermGradients(every=2)]), 2)
    loss,weight,grad,cos = plot_terms(learn).axes[5:]
    assert [o.get_text() for o in loss.get_legend().get_texts()]==['task','simclr','rotation']
    assert len(grad.lines)==6 and len(cos.get_legend().get_texts())==3 and list(weight.lines[0].get_ydata())==list(learn.simclr.history.weight)
    assert len({round(v, 6) for v in learn.simclr.history.weight})>1

def test_history_is_of_the_last_fit():
    cb = term(.5)
    learn = fit(make_learn(cb), 2)
    n = 2*len(learn.dls.train)
    assert list(cb.history.step)==list(range(n)) and set(cb.history.weight)=={.5}
    assert np.isclose(cb.history.loss[n//2:].mean(), learn.recorder.values[-1][-1], atol=1e-4)
    fit(learn)
    assert len(cb.history)==n//2
