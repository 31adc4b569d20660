"Corruption: what each does, severities, the region and its map, what is refused"
import pytest
from utils import *
from fastai_contrastive.pretext.corruption import *

pytestmark = pytest.mark.usefixtures('strict')

kinds = list(corruptions)
def smooth(n=4, size=32):
    "Pictures with something in them"
    i = torch.linspace(0, 1, size)
    return torch.stack([(.2+.6*i)[:,None]*torch.ones(size), (.5+.3*torch.sin(9*i))[:,None]*torch.ones(size), .8*torch.ones(size,1)*i]).expand(n,-1,-1,-1).clone()

@pytest.mark.parametrize('kind', kinds)
def test_more_severity_is_a_larger_change(kind):
    set_seed(0)
    p = smooth(20) + .05*torch.randn(20,3,32,32)
    p = p.clamp(0, 1)
    was = p.clone()
    d = [(corrupt(p, kind, torch.full((20,), s))-p).abs().mean().item() for s in (.1,.4,.7,1.)]
    assert torch.equal(p, was) and d[0]<d[-1] and d[-1]>.02 and all(a<=b+1e-3 for a,b in zip(d, d[1:])), d

@pytest.mark.parametrize('kind', kinds)
@pytest.mark.parametrize('size', [(32,32), (17,30), (9,8)])
def test_severity_is_each_images_own(kind, size):
    p = torch.rand(3,3,*size)
    s = tensor([0.,.4,1.])
    out = corrupt(p, kind, s)
    assert out.shape==p.shape and out.min()>=0 and out.max()<=1
    if kind not in ('noise','holes'):
        for i in range(3): assert torch.allclose(corrupt(p[i:i+1], kind, s[i:i+1])[0], out[i], atol=1e-5)

def test_what_they_do():
    p = torch.rand(2,3,32,32)
    one = torch.ones(2)
    assert torch.allclose(corrupt(p, 'invert', one), 1-p) and torch.equal(corrupt(p, 'invert', 0*one), p)
    assert torch.allclose(corrupt(p, 'colours', one), p[:,[2,0,1]])
    c = corrupt(p, 'contrast', one)
    assert torch.allclose(c-c.mean((1,2,3), keepdim=True), .15*(p-p.mean((1,2,3), keepdim=True)), atol=1e-5)
    want = p.view(2,3,8,4,8,4).mean((3,5)).repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert torch.allclose(corrupt(p, 'pixelate', one), want, atol=1e-5) # an eighth of 32 pixels
    h = corrupt(p, 'holes', one)
    same = (h==p).all(1)
    assert abs(same.float().mean()-.5)<.1 and torch.allclose(h.movedim(1,-1)[~same].unique(dim=0), p.mean((2,3)).unique(dim=0), atol=1e-6)

def test_blocks_against_scipy():
    dctn = pytest.importorskip('scipy.fft')
    p,s = torch.rand(1,2,16,24),.6
    want,i = p[0].double().numpy().copy(),np.arange(8)
    q = (.05+.25*s)*(1+i+i[:,None])
    for c in range(2):
        for a in range(0,16,8):
            for b in range(0,24,8):
                z = dctn.dctn(want[c,a:a+8,b:b+8], norm='ortho')
                want[c,a:a+8,b:b+8] = dctn.idctn(np.round(z/q)*q, norm='ortho')
    assert np.allclose(corrupt(p, 'blocks', tensor([s]))[0], want.clip(0,1), atol=1e-4)

def test_each_image_gets_what_its_answer_says():
    task = Corruption(['invert','colours'], severity=1.)
    task.stats = dict(mean=[.5]*3, std=[.25]*3)
    p = torch.rand(60,3,8,8)
    x = task.normalised(p)
    was = x.clone()
    q,k = task.make(x)
    assert torch.equal(x, was) and set(k.tolist())=={0,1,2} and task.vocab==['nothing','invert','colours']
    for o,i,a in zip(task.pixels(q), k.tolist(), p):
        assert torch.allclose(o, [a, 1-a, a[[2,0,1]]][i], atol=1e-5)
    assert torch.equal(q[k==0], x[k==0])

def test_severities_are_drawn():
    task = Corruption(['contrast'], severity=(.2,.6))
    p = torch.rand(400,3,8,8)
    q,k = task.make(p)
    s = (1-q.flatten(1).std(1)/p.flatten(1).std(1))[k==1]/.85
    assert .19<s.min()<.25 and .55<s.max()<.61 and abs(s.mean()-.4)<.03

@pytest.mark.parametrize('size,grid', [((16,16),4), ((24,40),3), ((32,32),8), ((18,18),4), ((16,16),2)])
def test_where(size, grid):
    "What is outside of the region is untouched, and the region is where the map says"
    task = Corruption(['invert','colours'], severity=1., where=grid)
    p = .1+.3*torch.rand(50,3,*size)
    q,y = task.make(p)
    assert y.shape==(50,grid,grid) and set(y.unique().tolist())=={0,1,2}
    m = F.interpolate(y[:,None].float(), size=size)[:,0]
    for i,want in enumerate([p, 1-p, p[:,[2,0,1]]]):
        hit = m==i
        assert torch.allclose(q.movedim(1,-1)[hit], want.movedim(1,-1)[hit], atol=1e-6)
    assert all(len(set(o.unique().tolist())-{0})<=1 for o in y)

def test_regions_are_rectangles_everywhere():
    m = random_region(400, 6)
    for o in m[:50]:
        r,c = o.any(1),o.any(0)
        assert torch.equal(o, r[:,None]&c) and 2<=r.sum()<=3 and 2<=c.sum()<=3
        assert r.int().diff().abs().sum()<=2
    assert m.float().mean(0).min()>.02

def test_iou():
    y = torch.zeros(1,4,4).long()
    y[0,:2,:2] = 1
    pred = torch.zeros(1,3,4,4)
    pred[0,0] = .5
    assert region_iou(pred, y)==0
    pred[0,2,:2,:3] = 1. # another name does not matter: 4 of 6 cells
    assert torch.isclose(region_iou(pred, y), tensor(4/6))

@pytest.mark.parametrize('kw,match', [(dict(kinds=['blurr']), "'blurr'.*noise, blur"), (dict(kinds=[]), 'at least one'), (dict(kinds=['blur','blur']), 'none twice'),
    (dict(severity=2), 'from 0 to 1'), (dict(severity=(.6,.2)), 'severity'), (dict(where=1), '2 or more'), (dict(where=-1), 'where'), (dict(nh=0), 'nh')])
def test_bad_settings(kw, match):
    with pytest.raises(ValueError, match=match): Corruption(**kw)

def test_bad_images():
    with pytest.raises(ValueError, match=r"leave it out, kinds=\['noise', 'blur'"): Corruption().make(torch.rand(2,1,8,8))
    Corruption([o for o in kinds if o!='colours']).make(torch.rand(2,1,8,8))
    Corruption().make(torch.rand(2,5,8,8))
    with pytest.raises(ValueError, match='smaller than a pixel'): Corruption(where=16).make(torch.rand(2,3,8,8))

@pytest.mark.parametrize('task', [Corruption(['invert','noise']), Corruption(['invert','noise'], where=4)], ids=str)
def test_it_learns_and_is_shown(task):
    learn = pretext_learner(make_dls(labelled=False, n=48), body(), task)
    fit(learn, 6, 'fit_one_cycle', 1e-2)
    vals = [o[0] for o in learn.recorder.values]
    assert vals[-1]<vals[0] and np.isfinite(vals).all()
    with quietly(learn):
        assert learn.validate()==learn.validate()
        learn.show_batch()
        learn.show_results()
        assert len(plt.gcf().axes)==6*(3 if task.where else 1) and '/' in plt.gcf().axes[0].get_title()
        learn.predict(learn.dls.valid_ds[0][0])
        learn.dls.show_batch(figsize=(3,3))
        assert learn.get_preds(with_loss=True)[2].shape==(12,)
        if not task.where: assert ClassificationInterpretation.from_learner(learn).confusion_matrix().sum()==12

@pytest.mark.parametrize('where', [0,2])
def test_as_a_term(where):
    cb = PretextTerm(Corruption(where=where))
    learn = fit(make_learn([cb, term(name='simclr')]))
    assert np.isfinite(learn.recorder.values[-1][:3]).all() and 'corruption_'+('region_iou' if where else 'accuracy') in learn.recorder.metric_names
    assert torch.equal(head_ws(deepcopy(learn).corruption), head_ws(cb))

def test_a_corruption_of_ones_own():
    corruptions['mirrored'] = lambda p, s: p.flip(3)
    try:
        p = torch.rand(40,3,8,8)
        q,k = Corruption(['mirrored']).make(p)
        assert torch.allclose(q[k==1], p.flip(3)[k==1]) and 0<k.sum()<40
    finally: del corruptions['mirrored']
