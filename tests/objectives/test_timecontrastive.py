"TimeContrastive against its equation, pair by pair; and the contract of objectives, since the tests over the registry have no clips"
import forked, pytest, torch.distributed as dist
from utils import *
from fastai_contrastive.clips import TensorClip
from fastai_contrastive.pretext.frame_order import FrameOrder
from fastai_contrastive.objectives.timecontrastive import *

def by_hand(z, clip, time, near, far, others, temp):
    z,out = F.normalize(z.double(), dim=1),[]
    for i in range(len(z)):
        s = (z[i]@z.T/temp).exp()
        neg = [s[k] for k in range(len(z)) if (clip[k]==clip[i] and abs(time[k]-time[i])>=far) or (clip[k]!=clip[i] and others)]
        if not neg: continue
        out += [-(s[j]/(s[j]+sum(neg))).log() for j in range(len(z)) if clip[j]==clip[i] and 0<abs(time[j]-time[i])<=near]
    return torch.stack(out).mean().item()

@pytest.mark.parametrize('near,far,others,temp', [(1,3,True,.1), (2,3,False,.5), (1,5,False,.2), (1,9,True,.1)])
def test_loss(near, far, others, temp):
    torch.manual_seed(0)
    z,clip,time = torch.randn(18,5)*7,torch.arange(18)//6,torch.arange(18)%6
    assert time_nce(z, clip, time, near, far, others, temp).item()==pytest.approx(by_hand(z, clip, time, near, far, others, temp), rel=1e-4)
    obj = TimeContrastive(near=near, far=far, others=others, temp=temp)
    assert obj.loss([z.view(3,6,5)], None, None).item()==pytest.approx(by_hand(z, clip, time, near, far, others, temp), rel=1e-4)

def test_neither_partner_nor_negative_does_not_count():
    "What is between near and far gets no gradient from a frame, and its own likeness to itself none"
    z = torch.randn(5,4, requires_grad=True)
    time_nce(z, torch.zeros(5).long(), torch.arange(5), 1, 4, False).backward()
    assert z.grad[2].abs().sum()==0 and all(z.grad[i].abs().sum()>0 for i in (0,1,3,4))

def clips(n=8, t=6, seed=0): return torch.rand(n,t,3,16,16, generator=torch.Generator().manual_seed(seed))

def ready(**kwargs):
    torch.manual_seed(0)
    enc,obj = create_encoder(plain_body()),TimeContrastive(**{'dim':6, 'hidden':12, **kwargs})
    return obj.set_up(enc).train(),enc

@pytest.mark.parametrize('dtype', [None,torch.bfloat16,torch.float16])
@pytest.mark.parametrize('same', [False,True])
def test_finite_and_in_float32(dtype, same):
    "Also where every frame is the same"
    obj,enc = ready()
    seen = set()
    obj.projector.register_forward_hook(lambda m,x,y: seen.add(y.dtype))
    x = clips()[:1,:1].expand(8,6,-1,-1,-1) if same else clips()
    with torch.autocast('cpu', dtype=dtype or torch.bfloat16, enabled=dtype is not None): c = obj(enc, [x])
    c.backward()
    assert c.shape==() and c.dtype==torch.float32 and seen=={torch.float32} and torch.isfinite(c)
    gs = [p.grad for m in (obj,enc) for p in m.parameters()]
    assert all(torch.isfinite(g).all() for g in gs) and (same or all(g.abs().sum()>0 for g in gs))

def _worker(rank, path):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{path}/store', rank=rank, world_size=2)
    torch.save(_grads(slice(4*rank, 4*rank+4)), f'{path}/{rank}.pt')
    dist.destroy_process_group()

def _grads(i):
    obj,enc = ready()
    c = obj(enc, [clips()[i]])
    c.backward()
    return c.detach(),torch.cat([p.grad.flatten() for m in (obj,enc) for p in m.parameters()])

def test_two_processes_are_one_with_the_joined_batch(tmp_path):
    forked.spawn(_worker, (str(tmp_path),), 2)
    (a,ga),(b,gb) = (torch.load(tmp_path/f'{i}.pt') for i in range(2))
    one,g = _grads(slice(None))
    assert (a+b)/2==pytest.approx(one.item(), abs=1e-5) and torch.allclose((ga+gb)/2, g, atol=1e-5)

def make_clips(n=20, t=6):
    ds = [(TensorClip(x),) for x in clips(n, t)]
    return DataLoaders.from_dsets(ds, ds, bs=8, shuffle=False, drop_last=False, device='cpu', num_workers=0)

def test_in_learners():
    "Alone, beside a task on the same clips, beside labels of images from a loader of its own; state goes along"
    learn = fit(contrastive_learner(make_clips(17), body(), TimeContrastive(dim=6))) # The last batch of one clip is passed over
    assert np.isfinite(learn.recorder.values[-1]).all()
    with quietly(learn): assert learn.validate()==learn.validate()
    sd = learn.timecontrastive.state_dict()
    cb = ContrastiveCallback(TimeContrastive(dim=6))
    cb.load_state_dict(sd)
    assert torch.equal(ws(cb.objective), ws(learn.timecontrastive.objective))
    learn = fit(pretext_learner(make_clips(), body(), FrameOrder(), cbs=ContrastiveCallback(TimeContrastive(dim=6))))
    assert np.isfinite(learn.recorder.values[-1]).all()
    cb = ContrastiveCallback(TimeContrastive(dim=6), dl=make_clips())
    learn = make_learn(cb)
    was = ws(learn.model[0])
    fit(learn)
    assert np.isfinite(col(learn, 'timecontrastive_loss')) and not torch.equal(was, ws(learn.model[0])) and cb.heads

def test_views_are_of_frames():
    "Each frame has a view of its own: light and colour, and no crop or mirror that would move what is in it"
    seen = []
    class Noted(TimeContrastive):
        def forward(self, encoder, views, y=None): seen.append(views); return super().forward(encoder, views, y)
    del Objective.registry['noted']
    fit(contrastive_learner(make_clips(), body(), Noted(dim=6)))
    assert len(seen[0])==1 and seen[0][0].shape==(8,6,3,16,16)
    v = TimeContrastive().views()
    x = torch.zeros(64,3,16,16)
    x[...,3:6,9:12] = 1
    y = v(x)[0]
    assert (y[...,:3,:].std((-2,-1))<1e-4).all() and (y[...,4,10]-y[...,4,2]>.05).float().mean()>.9

@pytest.mark.parametrize('f,e,msg', [
    (lambda: fit(contrastive_learner(make_dls(), body(), TimeContrastive())), TypeError, 'timecontrastive needs clips .*use clip_dls'),
    (lambda: fit(make_learn(ContrastiveCallback(TimeContrastive()))), TypeError, 'timecontrastive needs clips'),
    (lambda: fit(contrastive_learner(make_clips(t=3), body(), TimeContrastive(others=False))), ValueError, 'clips of 3 frames are too short'),
    (lambda: fit(contrastive_learner(make_clips(t=1), body(), TimeContrastive())), ValueError, 'clips of 1 frames are too short'),
    (lambda: TimeContrastive(near=3), ValueError, 'far more than that: got near=3, far=3'), (lambda: TimeContrastive(near=0), ValueError, 'near must be'),
    (lambda: TimeContrastive(temp=0.), ValueError, 'temp must be'), (lambda: TimeContrastive(dim=0), ValueError, 'dim must be 1'), (lambda: TimeContrastive(far=2.5), ValueError, 'far must be a whole number')])
def test_bad_input(f, e, msg):
    with pytest.raises(e, match=msg): f()

def test_a_refusal_costs_no_step():
    learn = contrastive_learner(make_dls(), body(), TimeContrastive())
    was = ws(learn.model)
    with pytest.raises(TypeError): fit(learn)
    assert torch.equal(was, ws(learn.model))
