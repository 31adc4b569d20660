"Large batches through the networks in pieces (`chunk`): the gradients of the whole batch, whatever is beside the term"
import pytest
from utils import *
from test_objectives import conv_body, make
from fastai.callback.training import GradientAccumulation
from fastai.vision.learner import unet_learner
import fastai_contrastive.pieces as pieces
from fastai_contrastive import recipes
from fastai_contrastive.pieces import *
from fastai_contrastive.memory import _held_stats
from fastai_contrastive.objectives import *
from fastai_contrastive.same_run import _cb_settings

names = sorted(k for k,v in Objective.registry.items() if v.__module__.startswith('fastai_contrastive.') and v.takes=='images')

class Drawn(Callback):
    "The same draws at each batch; notes the gradients"
    order = 40
    def before_fit(self): self.got = []
    def before_batch(self): torch.manual_seed(self.iter)
    def after_backward(self): self.got += [p.grad.clone() for p in [*self.learn.model.parameters(), *term_of(self.learn).heads] if p.grad is not None]

def enc(bn=False, drop=False, seed=7):
    set_seed(seed)
    m = conv_body(bn=bn)
    return create_encoder(nn.Sequential(m, nn.Dropout(.3)) if drop else m)

def ran(chunk, name='simclr', beside='labels', bn=False, drop=False, cbs=(), n=16, bs=8, **kwargs):
    "After two steps"
    e = enc(bn, drop)
    obj = make(name, queue_size=20, n_neg=100, freeze=0, queue_start=0, momentum=.5)
    e,dls,kw = obj.prepare(e),make_dls(n=n, bs=bs, size=32, n_valid=8),dict(opt_func=SGD, cbs=[Drawn(), *cbs])
    if beside=='alone': learn = contrastive_learner(dls, e, obj, chunk=chunk, **kw)
    else:
        kw['cbs'].append(ContrastiveCallback(obj, weight=.5, chunk=chunk, **kwargs))
        if beside=='labels': learn = finetune_learner(dls, e, n_out=4, loss_func=CrossEntropyLossFlat(), metrics=[], **kw)
        else: learn = pretext_learner(dls, e, ByPixels(), metrics=[], **kw)
    with quietly(learn): learn.fit(1, 1e-2)
    return learn

def check_equal(a, b, eps=1e-4):
    assert len(a.drawn.got)==len(b.drawn.got)>4
    scale = max(o.abs().max() for o in a.drawn.got)
    assert max((p-q).abs().max() for p,q in zip(a.drawn.got, b.drawn.got))<=eps*scale
    assert torch.allclose(ws(a.model), ws(b.model), atol=1e-5)
    for (k,v),w in zip(term_of(a).state_dict()['objective'].items(), term_of(b).state_dict()['objective'].values()):
        assert torch.allclose(v.float(), w.float(), atol=1e-3), k
    assert np.allclose(a.recorder.values, b.recorder.values, atol=1e-4)

@pytest.mark.parametrize('name', names)
def test_gradients_of_the_whole_batch(name, monkeypatch):
    "Eight images in three pieces, beside labels: gradients, weights, all that is remembered, and what validation says"
    rows = []
    monkeypatch.setattr(pieces, '_pass', lambda m, f, k, quiet, x, call=pieces._pass: (rows.append((type(m).__name__,k)), call(m, f, k, quiet, x))[1])
    b = ran(3, name)
    assert {*rows}=={('Sequential',3),('Encoder',3)}
    check_equal(ran(None, name), b)

@pytest.mark.parametrize('beside', ['alone','pretext'])
@pytest.mark.parametrize('name', ['simclr','byol'])
def test_beside(name, beside): check_equal(ran(None, name, beside), ran(3, name, beside))

def test_accumulated(): check_equal(ran(None, cbs=[GradientAccumulation(16)]), ran(3, cbs=[GradientAccumulation(16)]))

def plain(f, *args, **kwargs): return f(*args)

@pytest.mark.parametrize('more', ['plain','bf16','scaled','balanced'])
@pytest.mark.parametrize('name', ['simclr','byol','dino'])
def test_the_second_pass_is_the_first(name, more, monkeypatch):
    "Dropout, batch norm, autocast: as without a second pass"
    kw = dict(bn=True, drop=True, cbs=[CPUMixed(dict(bf16=torch.bfloat16, scaled=torch.half)[more])] if more in ('bf16','scaled') else [])
    if more=='balanced': kw['weight'] = 'balanced'
    def go():
        e = enc(True, True)
        cb = ContrastiveCallback(make(name, momentum=.5), chunk=3, weight=kw.get('weight', .5))
        learn = finetune_learner(make_dls(n=16, bs=8, size=32, n_valid=8), e, n_out=4, loss_func=CrossEntropyLossFlat(), metrics=[], opt_func=SGD, cbs=[Drawn(), cb, *kw['cbs']])
        with quietly(learn): learn.fit(1, 1e-2)
        return learn
    a = go()
    monkeypatch.setattr(pieces, 'checkpoint', plain)
    check_equal(a, go(), 1e-5)

def norms(m): return [o for o in m.modules() if isinstance(o, nn.BatchNorm2d)]

@pytest.mark.parametrize('name', ['simclr','byol'])
@pytest.mark.parametrize('beside', ['alone','labels'])
def test_running_statistics_move_once(name, beside):
    "The first norm of encoder and teacher sees what it would have seen; one step of one batch"
    a,b = (ran(k, name, beside, bn=True, n=8) for k in (None,3))
    for m,n in [(a.model[0],b.model[0])] + ([(term_of(a).objective.ema.encoder,term_of(b).objective.ema.encoder)] if name=='byol' else []):
        assert torch.allclose(norms(m)[0].running_var, norms(n)[0].running_var, rtol=1e-4) and torch.allclose(norms(m)[0].running_mean, norms(n)[0].running_mean, atol=1e-6)
        assert [o.num_batches_tracked for o in norms(m)]==[o.num_batches_tracked for o in norms(n)]
        assert not torch.allclose(norms(n)[0].running_var, torch.ones(8))
    if beside=='labels':
        def stats(k):
            learn = ran(k, name, 'labels', bn=True, n=8, cbs=[])
            return norms(learn.model[0])[0].running_var
        assert torch.allclose(stats(None), stats(3), rtol=1e-4)

def test_held_within_held():
    "A step in two portions, each in pieces: as one batch"
    x = torch.randn(12, 4, 3, 3)*3+1
    def moved(k):
        net = nn.Sequential(m := nn.BatchNorm2d(4))
        with _held_stats(net) as notes, in_portions(net, k): net(x)
        (n,was,new), = notes.values()
        assert n==12*9 and torch.equal(was['running_var'], torch.ones(4)) and torch.equal(m.running_var, torch.ones(4))
        return new
    for p,q in zip(moved(1).values(), moved(4).values()): assert torch.allclose(p.float(), q.float(), rtol=1e-4)

def test_spectral_norm():
    "What it remembers is in the second pass what it was in the first"
    def go(k):
        torch.manual_seed(0)
        m = nn.Sequential(nn.utils.spectral_norm(nn.Linear(6, 5)))
        with in_portions(m, k):
            l = m(x).pow(2).mean()
            m[0].weight_u.zero_() # Whatever becomes of it in between
            l.backward()
        return m[0].weight_orig.grad
    x = torch.randn(8, 6)
    assert torch.allclose(go(1), go(4), rtol=1e-3, atol=1e-6)

def test_gradients_twice():
    "A graph that is gone through again"
    torch.manual_seed(0)
    m,x = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout()),torch.randn(8, 4)
    with in_portions(m, 2): l = m(x).pow(2).sum()
    a,b = (torch.autograd.grad(l, m[0].weight, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(a, b) and a.any()

@pytest.mark.parametrize('chunk', [8,64])
def test_larger_than_the_batch(chunk):
    "Nothing is another one, to the last bit"
    a,b = ran(None, bn=True, drop=True),ran(chunk, bn=True, drop=True)
    assert torch.equal(ws(a.model), ws(b.model)) and torch.equal(head_ws(term_of(a)), head_ws(term_of(b)))

@pytest.mark.parametrize('chunk', [0,-1,2.5,True,'8'])
def test_bad_values(chunk):
    with pytest.raises(ValueError, match='chunk is the number of images.*got '+re.escape(repr(chunk))): ContrastiveCallback('simclr', chunk=chunk)

def test_not_with_a_shared_pass():
    with pytest.raises(ValueError, match='share=True.*leave out one of the two'): ContrastiveCallback('simclr', chunk=8, share=True)

def test_what_a_run_is_told_by():
    "Shown, copied, and another one where a run goes on"
    cb = ContrastiveCallback(SimCLR(), chunk=8)
    assert repr(cb)=='ContrastiveCallback(SimCLR(), chunk=8)'==_cb_settings(deepcopy(cb)) and deepcopy(cb).chunk==8

class Odd(nn.Module):
    "Gives one number for all"
    def __init__(self): super().__init__(); self.body = nn.Sequential(conv_body(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    def forward(self, x): return self.body(x).mean()

@pytest.mark.parametrize('f,x', [(nn.Bilinear(4, 4, 2), (torch.rand(6, 4),torch.rand(5, 4))), (Odd(), (torch.rand(6, 3, 16, 16),))])
def test_what_cannot_be_cut(f, x):
    with pytest.raises(ValueError, match='no row for each.*leave out chunk='), in_portions(f, 2): f(*x)

def test_nothing_is_left_behind():
    "After Ctrl-C in the model, and after a fit, the model is called as before"
    learn = make_learn(term(chunk=3), dls=make_dls(size=32))
    was = dict(learn.model.__dict__)
    h = learn.model[1].register_forward_hook(throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt): fit(learn)
    h.remove()
    assert learn.model.__dict__.keys()==was.keys() and 'forward' not in learn.model.__dict__
    fit(learn)
    assert 'forward' not in learn.model.__dict__ and not {'forward','both'} & term_of(learn)._enc.__dict__.keys()

def test_two_terms():
    "The model's pass is cut once, by the smaller of the two"
    seen = []
    learn = make_learn([term(chunk=4), term(chunk=2, name='b')], dls=make_dls(size=32, n_valid=8))
    learn.model[1].register_forward_hook(lambda m,x,o: seen.append(len(o)))
    fit(learn)
    assert {*seen}=={2}

def small_net(pretrained=False):
    "As `create_body` takes it"
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

def test_unet(monkeypatch):
    "Whose decoder sees what hooks have kept of the encoder, in the second pass as in the first"
    set_seed(0)
    x = images(4, 32)[0]
    ds = [(TensorImage(o),TensorMask((o[0]>.5).long())) for o in x]
    def go():
        set_seed(0)
        dls = DataLoaders.from_dsets(ds, ds, bs=4, device='cpu', shuffle=False, num_workers=0)
        dls.c = 2
        learn = unet_learner(dls, small_net, pretrained=False, normalize=False, n_out=2, blur_final=False, loss_func=CrossEntropyLossFlat(axis=1), opt_func=SGD, norm_type=None,
            cut=-2, cbs=[Drawn(), ContrastiveCallback(SimCLR(dim=8), two_views, weight=.1, chunk=2)])
        with quietly(learn): learn.fit(1, 1e-3)
        return learn
    a = go()
    monkeypatch.setattr(pieces, 'checkpoint', plain)
    b = go()
    scale = max(o.abs().max() for o in a.drawn.got)
    assert max((p-q).abs().max() for p,q in zip(a.drawn.got, b.drawn.got))<=1e-5*scale

def test_recipes(synth, tmp_path):
    "By name in a recipe and in fine-tuning: every contrastive term has it, the row says it, and nothing else may ask for it"
    kw = dict(data=str(synth), size=16, bs=8, arch='xresnet_narrow', arch_args=dict(nf=16, blocks=1), epochs=1, chunk=4)
    learn,row = recipes.pretrain(recipes.Recipe(objective='simclr', task='rotation', terms=dict(vicreg=.1), **kw), tmp_path/'w.safetensors', num_workers=0)
    assert row['chunk']==4 and {c.objective.name:c.chunk for c in learn.cbs if isinstance(c, ContrastiveCallback)}==dict(simclr=4, vicreg=4)
    learn = recipes.recipe_learner(recipes.Recipe(objective='simclr', **kw), num_workers=0)
    assert term_of(learn).chunk==4
    learn,row = recipes.finetune(tmp_path/'w.safetensors', synth, size=16, bs=8, epochs=1, terms=dict(simclr=.1), chunk=4, num_workers=0)
    assert row['chunk']==4 and term_of(learn).chunk==4
    with pytest.raises(ValueError, match='is for a contrastive term'): recipes.Recipe(task='rotation', **kw)
    with pytest.raises(ValueError, match='is for a contrastive term'): recipes.finetune('xresnet18', synth, chunk=4)
    with pytest.raises(ValueError, match='chunk must be 1 or more'): recipes.Recipe(objective='simclr', **{**kw, 'chunk':0})
