"Passes in bfloat16 and channels-last: what is cast, what is not, who chooses, and what is kept"
import json

import pytest, torch
from copy import deepcopy
from fastai.vision.all import (Callback, CancelFitException, CrossEntropyLossFlat, Learner, first, load_learner, nn, set_seed)
from fastai_contrastive import precision as P, recipes
from fastai_contrastive.core import ContrastiveCallback, contrastive_learner, create_encoder
from fastai_contrastive.data import synth_dls
from fastai_contrastive.objective import Objective
from fastai_contrastive.objectives import SimCLR
from fastai_contrastive.precision import PassPrecision, chosen_precision, pass_seconds
from fastai_contrastive.pretext import Inpainting, Jigsaw, Rotation, SimMIM, pretext_learner
from fastai_contrastive.pretext_term import PretextTerm
from fastai_contrastive.recipes import Recipe
from fastai_contrastive.encoder import encoder_info

pytestmark = pytest.mark.filterwarnings('ignore:bf16 was asked for')

def encoder(): return create_encoder('xresnet_narrow', nf=16, blocks=1)

def labelled(*cbs):
    set_seed(0)
    enc = encoder()
    return Learner(synth_dls(size=32, bs=8), nn.Sequential(enc, nn.Linear(enc.nf, 10)), loss_func=CrossEntropyLossFlat(), cbs=cbs)

def fit(learn, n=2, **kwargs):
    class Stop(Callback):
        order = 99
        def after_batch(self):
            if self.iter==n-1: raise CancelFitException
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3, cbs=Stop(), **kwargs)
    return learn

class Types(Callback):
    "Notes the types that modules give"
    order = -100
    def __init__(self): self.seen,self.on = {},[]
    def watch(self, name, m):
        def _f(m, i, o): self.seen.setdefault(name, set()).add(o.dtype)
        if isinstance(m, nn.Module): self.on.append(m.register_forward_hook(_f))
    def after_fit(self):
        for h in self.on: h.remove()

def conv(m): return next(o for o in m.modules() if isinstance(o, nn.Conv2d))

@pytest.mark.parametrize('name', ['simclr','byol','densecl','cmc'])
def test_heads_of_objectives_are_float32(name):
    "Alone: the encoder's passes are cast, projectors are not, the loss is float32"
    set_seed(0)
    obj,t = Objective.registry[name](),Types()
    learn = contrastive_learner(synth_dls(size=32, bs=8), encoder(), obj, cbs=[PassPrecision('bf16'), t])
    obj.set_up(learn.model[0])
    t.watch('encoder', conv(learn.model[0]))
    for k,m in obj.named_modules():
        if k[:3]!='ema' and isinstance(m, nn.Linear): t.watch(k, m)
    fit(learn)
    # What an objective tries out before the run need not be cast
    assert torch.bfloat16 in t.seen.pop('encoder') and t.seen and all(o=={torch.float32} for o in t.seen.values()), t.seen
    assert learn.smooth_loss.dtype==torch.float32 and all(p.dtype==torch.float32 for p in learn.model.parameters())

@pytest.mark.parametrize('task', [Rotation, Inpainting, Jigsaw, SimMIM])
@pytest.mark.parametrize('beside', [False,True])
def test_heads_of_tasks_are_float32(task, beside):
    "As the base of a learner, and as a term"
    set_seed(0)
    t,cast = Types(),PassPrecision('bf16')
    if beside: learn = labelled(PretextTerm(task()), cast, t)
    else: learn = pretext_learner(synth_dls(size=32, bs=8), encoder(), task(), cbs=[cast, t])
    t.watch('encoder', conv(learn.model[0]))
    if beside:
        fit(learn, 1) # Makes the head
        term = first(learn._grab_cbs(PretextTerm))
        t.watch('encoder', conv(learn.model[0]))
        head = term.module['head']
    else: head = learn.model[1]
    lin = [o for o in head.modules() if isinstance(o, (nn.Linear,nn.Conv2d))]
    for i,o in enumerate(lin): t.watch(f'head {i}', o)
    fit(learn)
    assert torch.bfloat16 in t.seen.pop('encoder') and len(t.seen)==len(lin) and all(o=={torch.float32} for o in t.seen.values())

@pytest.mark.parametrize('compiled', ['','wrapped','in place','encoder'])
def test_a_classifier_is_float32(compiled):
    "What follows the encoder in a chain; and what a model predicts, however it is wrapped"
    t,cast = Types(),PassPrecision('bf16')
    learn = labelled(cast, t)
    t.watch('encoder', conv(learn.model))
    t.watch('classifier', learn.model[1])
    if compiled=='wrapped': learn.model = torch.compile(learn.model, backend='eager')
    if compiled=='in place': learn.model.compile(backend='eager')
    if compiled=='encoder': learn.model[0].body = torch.compile(learn.model[0].body, backend='eager')
    fit(learn)
    assert t.seen==dict(encoder={torch.bfloat16}, classifier={torch.float32})
    assert learn.smooth_loss.dtype==torch.float32

def test_close_to_float32():
    "The same run: losses differ by what bfloat16 rounds away, and do differ"
    losses = []
    for kind in ('fp32','bf16'):
        learn = fit(labelled(PassPrecision(kind), ContrastiveCallback(SimCLR(dim=8))), 3)
        losses.append(torch.stack([torch.as_tensor(float(o)) for o in learn.recorder.losses]+[learn.simclr.history.loss.mean()*torch.ones(())]))
    a,b = losses
    assert not torch.equal(a, b) and (a-b).abs().max()<.05, (a, b)

def test_fp32_is_float32():
    "Only the layout is another: to the rounding of a sum, the learner without it"
    a,b = fit(labelled(), 3),fit(labelled(PassPrecision('fp32')), 3)
    for p,q in zip(a.model.parameters(), b.model.parameters()): torch.testing.assert_close(p, q, atol=2e-4, rtol=1e-3)
    assert conv(b.model).weight.is_contiguous(memory_format=torch.channels_last)

def test_nothing_is_left():
    "After a fit, and after one that was interrupted in the midst of a pass"
    def _plain(learn): return not (learn.model._forward_hooks or learn.model._forward_pre_hooks or learn.model[1]._forward_hooks
        or torch.is_autocast_enabled('cpu') or '_do_epoch' in learn.__dict__)
    learn = fit(labelled(PassPrecision('bf16')))
    assert _plain(learn) and learn.model(torch.rand(2,3,32,32)).dtype==torch.float32
    def _stop(m, i, o): raise KeyboardInterrupt
    learn = labelled(PassPrecision('bf16'))
    h = conv(learn.model).register_forward_hook(_stop)
    with pytest.raises(KeyboardInterrupt): fit(learn)
    h.remove()
    assert _plain(learn)
    fit(learn)

def test_it_is_copied_and_exported(tmp_path):
    learn = labelled(PassPrecision('bf16'))
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    deepcopy(learn)
    learn.export(tmp_path/'l.pkl')
    assert load_learner(tmp_path/'l.pkl').model(torch.rand(2,3,32,32)).dtype==torch.float32

@pytest.mark.parametrize('faster', ['fp32','bf16'])
def test_auto(monkeypatch, faster):
    "It takes what is faster, says so once, and keeps to it in later fits and after its state was loaded"
    monkeypatch.setattr(P, 'native_bf16', lambda d: True)
    monkeypatch.setattr(P, 'pass_seconds', lambda m, x, n=2: {'fp32':.1+.1*(faster=='bf16'), 'bf16':.1+.1*(faster=='fp32')})
    said = []
    cb = PassPrecision(say=said.append)
    learn = fit(labelled(cb))
    fit(learn)
    assert cb.chosen==faster and len(said)==1 and said[0].startswith(f'precision: {faster}') and '200 ms' in said[0]
    new = PassPrecision(say=said.append)
    new.load_state_dict(cb.state_dict())
    fit(labelled(new))
    assert new.chosen==faster and len(said)==1
    assert chosen_precision(learn)==faster and chosen_precision(labelled()) is None

def test_auto_times_what_there_is(monkeypatch):
    "The encoder; all of a model in which none can be told"
    monkeypatch.setattr(P, 'native_bf16', lambda d: True)
    said = []
    plain = nn.Sequential(nn.Flatten(), nn.Linear(3*16*16, 10))
    for learn in (labelled(), Learner(synth_dls(size=16, bs=8), plain, loss_func=CrossEntropyLossFlat())):
        learn.add_cb(PassPrecision(say=said.append))
        assert fit(learn).pass_precision.chosen in ('fp32','bf16')
    assert len(said)==2

def test_auto_without_bfloat16(monkeypatch):
    "Nothing is measured where the hardware has none"
    monkeypatch.setattr(P, 'native_bf16', lambda d: False)
    monkeypatch.setattr(P, 'pass_seconds', lambda *a: pytest.fail('measured'))
    said = []
    learn = fit(labelled(PassPrecision(say=said.append)))
    assert learn.pass_precision.chosen=='fp32' and not said

def test_measuring_changes_nothing():
    "Neither weights, nor running statistics, nor random numbers"
    enc = encoder()
    was = {k:v.clone() for k,v in enc.state_dict().items()}
    state = torch.get_rng_state()
    secs = pass_seconds(enc, torch.ones(4,3,32,32), 1)
    assert set(secs)=={'fp32','bf16'} and all(v>0 for v in secs.values())
    assert all(torch.equal(v, was[k]) for k,v in enc.state_dict().items()) and torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None for p in enc.parameters())

def test_imitation_is_said(monkeypatch):
    monkeypatch.setattr(P, 'native_bf16', lambda d: False)
    with pytest.warns(UserWarning, match='bf16 was asked for'): fit(labelled(PassPrecision('bf16')))

@pytest.mark.parametrize('kind', ['fp16','', None, 16])
def test_refused(kind):
    with pytest.raises(ValueError, match="'auto', 'fp32' or 'bf16'"): PassPrecision(kind)
    with pytest.raises(ValueError, match="'auto', 'fp32' or 'bf16'"): Recipe(objective='simclr', precision=kind)

def test_two_that_cast():
    with pytest.raises(ValueError, match='leave out one of the two'): fit(labelled(PassPrecision('bf16')).to_fp16())

def test_kept_by_recipe_and_encoder(tmp_path):
    "What was chosen stands in the row and in the encoder's file"
    r = Recipe(objective='simclr', size=16, bs=8, arch='xresnet_narrow', arch_args=dict(nf=16, blocks=1), epochs=1, precision='bf16')
    dls = synth_dls(size=16, bs=8, n=16)
    learn,row = recipes.pretrain(r, tmp_path/'w', dls=dls)
    head = encoder_info(tmp_path/'w.safetensors')['recipe']
    kept = json.loads((tmp_path/'w.json').read_text())
    for o in (row,head,kept): assert (o['precision'],o['chosen_precision'])==('bf16','bf16')
    r.precision = 'auto'
    _,row = recipes.pretrain(r, tmp_path/'v', dls=dls)
    assert (row['precision'],row['chosen_precision'])[0]=='auto' and row['chosen_precision'] in ('fp32','bf16')
    _,row = recipes.finetune(tmp_path/'w.safetensors', dls=dls, size=16, bs=8, epochs=1, precision='bf16')
    assert row['chosen_precision']=='bf16'
