"A weight that looks for itself: what it measures, when, and what it leaves alone"
import pytest
from utils import *
from fastai.callback.training import GradientAccumulation
from fastai_contrastive.balance import *
from fastai_contrastive.encoder import get_encoder
from fastai_contrastive.term import *

pytestmark = pytest.mark.usefixtures('strict')

@pytest.fixture(params=kinds)
def kind(request):
    the.kind = request.param
    yield request.param
    the.kind = kinds[0]

def balanced(*args, **kwargs):
    kw = {k:kwargs.pop(k) for k in ('name','dl','norms') if k in kwargs}
    return term(Balanced(*args, **kwargs), ready=True, fixed=True, **kw)

def norms_of(learn, losses):
    "Lengths of the gradients on the encoder, each loss by itself"
    ps = list(get_encoder(learn.model).parameters())
    return [torch.cat([g.flatten() for g in torch.autograd.grad(o, ps, retain_graph=True)]).norm().item() for o in losses]

# The sums

def test_gradients_of_several_losses():
    "Each as its own backward pass gives it, 0 where a loss does not reach; nobody's `.grad` is touched"
    set_seed(0)
    m,x = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)),torch.randn(5, 4)
    ps,out = [*m[0].parameters(), m[2].bias],m(x)
    losses = [out.pow(2).sum(), m[0](x).sin().mean(), tensor(1.)]
    g = flat_grads(losses, ps)
    assert g.shape==(3, 15+2) and not any(p.grad is not None for p in m.parameters())
    for row,l in zip(g, losses[:2]):
        m.zero_grad()
        l.backward(retain_graph=True)
        assert torch.allclose(row, torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in ps]), atol=1e-7)
    assert not g[2].any() and torch.allclose(flat_grads(losses, ps, scale=1024.), g, rtol=1e-4, atol=1e-6)

def test_cosines():
    g = torch.randn(3, 50)
    c = cosines(torch.cat([g, -2*g[:1], torch.zeros(1, 50)]))
    assert torch.allclose(c, c.T) and torch.allclose(c.diag(), tensor([1.,1.,1.,1.,0.])) and torch.isclose(c[0,3], tensor(-1.)) and not c[4].any()
    assert torch.allclose(c[:3,:3], F.cosine_similarity(g[:,None], g[None], dim=-1), atol=1e-6)

@pytest.mark.parametrize('kw,msg', [(dict(share=-1), 'share must be'), (dict(share=float('nan')), 'share must be'), (dict(share='1'), 'share must be'),
    (dict(every=0), 'every is a number of steps'), (dict(every=1.5), 'every is'), (dict(momentum=1), 'momentum must be'),
    (dict(momentum=-.1), 'momentum must be'), (dict(limit=0), 'limit is the largest weight'), (dict(limit=-1.), 'limit is the largest weight'), (dict(limit='9'), 'limit is the largest weight')])
def test_bad_input_is_named(kw, msg):
    with pytest.raises(ValueError, match=msg): Balanced(**kw)

def test_repr():
    assert repr(Balanced())=='Balanced()' and repr(Balanced(.5, every=3))=='Balanced(share=0.5, every=3)'
    assert repr(PretextTerm('rotation', Balanced(.5)))=='PretextTerm(Rotation(), weight=Balanced(share=0.5))'

# In a Learner

def test_the_weighted_gradient_is_the_share_of_the_tasks(kind):
    seen = []
    class See(Callback):
        order = -6
        def after_pred(self): self.cb = term_of(self.learn)
        def after_loss(self): self.task = self.learn.loss_grad
        def before_backward(self):
            if self.training: seen.append((*norms_of(self.learn, [self.task, self.cb._raw]), self.cb.history.weight.iloc[-1]))
    fit(make_learn(balanced(.5, every=1, momentum=0.)), 2, cbs=See())
    assert len(seen)==6 and all(np.isclose(w*b/a, .5, rtol=1e-4) for a,b,w in seen)

@pytest.mark.parametrize('every', [1,2,4])
def test_when_it_looks(every):
    cb = balanced(every=every)
    looks = []
    cb.weight.see = lambda *args, f=cb.weight.see: (looks.append(cb.learn.train_iter), f(*args))
    fit(make_learn(cb), 2)
    assert looks==list(range(0, 6, every)) and cb.history.weight.nunique()==len(looks)

def test_limit_and_share_0(kind):
    cb = term(Balanced(every=1, limit=3.), ready=True)
    spy(cb, lambda l: l*1e-9)
    fit(make_learn(cb))
    assert cb.history.weight.tolist()==[3.]*3
    a,b = [fit(make_learn(cbs)) for cbs in (None, own_term(Balanced(0.)))]
    assert torch.equal(ws(a.model), ws(b.model))

def test_share_may_be_a_schedule():
    cb = balanced(lambda p: .1+p, every=10**6)
    fit(make_learn(cb), 2)
    assert np.allclose(cb.history.weight/cb.history.weight[0], (.1+cb.history.step/6)/.1)

def test_looking_changes_nothing_else(kind):
    "The weights that it found, given as a schedule, train the same network to the last bit"
    res,found = [],None
    for w in (Balanced(every=2), lambda p: found[min(round(p*6), 5)]):
        c = term(w, seeded=True, fixed=True, norms=True)
        l = fit(make_learn(c), 2)
        if not res: found = c.history.weight.tolist()
        res.append((ws(l.model), ws(c.module), c.history.weight.tolist()))
    assert len(set(found))==3 and all(torch.equal(a, b) if isinstance(a, Tensor) else a==b for a,b in zip(*res))

def test_alone_it_is_refused(kind):
    learn = Learner(make_dls(), ViewsOnly(create_encoder(body())), loss_func=TermOnly(), cbs=own_term('balanced'))
    with pytest.raises(ValueError, match=rf'{term().name}: weight=Balanced\(\) holds a term against the task.*pass a number'): fit(learn)
    assert learn.opt is None or ws(learn.model).isfinite().all()

def test_a_frozen_encoder_gives_no_measurement(kind):
    cb = balanced(.3, every=1)
    learn = make_learn(cb, splitter=two_groups, train_bn=False)
    learn.freeze()
    was = head_ws(cb)
    fit(learn)
    assert cb.weight.log_ratio is None and cb.history.weight.tolist()==[.3]*3 and not torch.equal(was, head_ws(cb))
    learn.unfreeze()
    fit(learn)
    assert cb.weight.log_ratio is not None

def test_a_task_that_does_not_train_the_encoder_gives_none():
    "... as one that is learned completely, or a loss that is not finite"
    for change in (lambda l: 0*l, lambda l: l*math.nan):
        cb = balanced(every=1)
        spy(cb, change)
        fit(make_learn(cb))
        assert cb.weight.log_ratio is None and set(cb.history.weight)=={1.}

def test_its_state_is_the_terms(kind):
    cb = fit(make_learn(balanced(every=2)))._grab_cbs(TermCallback)[0]
    sd = cb.state_dict()
    assert sd['weight']==dict(log_ratio=cb.weight.log_ratio, n=3) and cb.weight.log_ratio
    c2 = term(Balanced(every=2))
    c2.load_state_dict(sd)
    fit(make_learn(c2), 1, 'fit', 0.)
    assert c2.weight.n==6
    fixed = term(.5)
    fixed.load_state_dict(sd) # a number has nothing to remember
    assert fixed.weight==.5
    other = term(Balanced(), ready=True)
    other.load_state_dict(term_of(fit(make_learn(term(.5)))).state_dict())
    assert other.weight.log_ratio is None

@pytest.mark.parametrize('first', [False,True])
def test_lr_find_puts_it_back(kind, first):
    cb = term('balanced', seeded=True, fixed=True)
    learn = make_learn(cb)
    if not first: fit(learn)
    was = cb.weight.state_dict()
    with quietly(learn): learn.lr_find(num_it=8, suggest_funcs=None, show_plot=False)
    assert cb.weight.state_dict()==was

def test_accumulated_it_counts_steps_and_stays_within_one(kind):
    "Four batches are two steps: looked at in the first batch of every other step"
    cb,looks = balanced(every=2),[]
    cb.weight.see = lambda *args, f=cb.weight.see: (looks.append(cb.learn.train_iter), f(*args))
    fit(make_learn(cb, make_dls(n=32, bs=4), pooled(plain_body())), 1, cbs=GradientAccumulation(8))
    assert looks==[0,4] and cb.weight.n==4
    assert [cb.history.weight[i]==cb.history.weight[i-1] for i in range(1,8)]==[True]*3+[False]+[True]*3

@pytest.mark.parametrize('dtype,tol', [(torch.bfloat16,.1), (torch.float32,1e-4)])
def test_mixed_precision(kind, dtype, tol):
    res = []
    for cbs in (None, CPUMixed(dtype)):
        cb = term(Balanced(every=1, momentum=0.), seeded=True, fixed=True)
        fit(make_learn(cb), 1, 'fit', 0., cbs=cbs)
        res.append(cb.history.weight)
    assert np.allclose(*res, rtol=tol)

def test_a_balance_given_to_two_terms_is_two():
    b = Balanced(every=1)
    x,y = PretextTerm('rotation', b),PretextTerm(Inpainting(grid=4), b)
    fit(make_learn([x, y]))
    assert x.weight is not y.weight is not b and b.log_ratio is None and x.weight.n==y.weight.n==3 and x.weight.log_ratio!=y.weight.log_ratio

@pytest.mark.parametrize('base', ['labels','task'])
def test_every_term_is_held_against_the_task_alone(base):
    "Not against the task and the terms before it: each weight is what it is without the others"
    def _mk(i): return [lambda: balanced(every=1), lambda: PretextTerm(question(fixed=True, seeded=True), Balanced(every=1)),
        lambda: PretextTerm(question(fixed=True, seeded=True, norms=True), Balanced(every=1), name='holes')][i]()
    def _run(*ids):
        set_seed(3)
        cbs = [_mk(i) for i in ids]
        learn = make_learn(cbs) if base=='labels' else pretext_learner(make_dls(), same_draws(body)(), question(fixed=True, seeded=True), cbs=cbs)
        fit(learn, 1, 'fit', 0.)
        return {cb.name:cb.history.weight.to_numpy() for cb in cbs}
    single = {k:v for i in range(3) for k,v in _run(i).items()}
    both = _run(1, 2)
    assert all(np.allclose(v, single[k], rtol=1e-4) for k,v in both.items())
    both = _run(2, 1)
    assert all(np.allclose(v, single[k], rtol=1e-4) for k,v in both.items())

def test_after_an_interrupted_step_the_task_is_seen_anew():
    cb = balanced(every=1)
    learn = make_learn([cb, PretextTerm('rotation')])
    with pytest.raises(KeyboardInterrupt): fit(learn, cbs=At('after_backward', throw(KeyboardInterrupt())))
    assert cb._task_loss is None and learn.rotation._task_loss is None
    assert np.isfinite(fit(learn).recorder.values[-1]).all()

def test_compiled():
    "A compiled graph may throw away what a second look needs: it keeps it, or says so"
    learn = make_learn(cb:=balanced(every=2))
    plain = make_learn(c2:=deepcopy(cb))
    fit(plain)
    learn.model = torch.compile(learn.model, backend='aot_eager')
    fit(learn)
    assert np.allclose(cb.history.weight, c2.history.weight, rtol=1e-3)
