"What the functions on the objectives' own pages, and memories, are asked to take: bad settings and shapes, no rows, huge scales, autocast"
import pytest
from utils import *
from fastai_contrastive.memory import *
from fastai_contrastive.memory import Queue
from fastai_contrastive.objectives.alignuniform import *
from fastai_contrastive.objectives.amdim import *
from fastai_contrastive.objectives.cpc import *
from fastai_contrastive.objectives.dcl import *
from fastai_contrastive.objectives.densecl import *
from fastai_contrastive.objectives.lejepa import *
from fastai_contrastive.objectives.nnclr import *
from fastai_contrastive.objectives.pirl import *
from fastai_contrastive.objectives.ressl import *
from fastai_contrastive.objectives.tico import *
from fastai_contrastive.objectives.wmse import *

nan,inf = float('nan'),float('inf')
R = torch.randn
def no(*shape): return torch.zeros(*shape)
def first(n): return torch.arange(n)

# Each function with its settings alone, on input that is as it should be
fs = dict(dcl=lambda **k: dcl(R(4,6), R(4,6), **k), align_loss=lambda **k: align_loss(R(4,6), R(4,6), **k), uniform_loss=lambda **k: uniform_loss(R(4,6), **k),
    pirl_nce=lambda **k: pirl_nce(R(4,6), R(4,6), R(9,6), **k), infomax_nce=lambda **k: infomax_nce(R(4,2,6), R(4,3,6), **k),
    patch_nce=lambda **k: patch_nce(R(4,6), R(9,6), first(4), **k), sigreg=lambda **k: sigreg(R(9,6), R(6,5), **k), whiten=lambda **k: whiten(R(9,6), **k),
    one_channel=lambda **k: one_channel(torch.rand(2,4,3,5,5), **k), RowContext=lambda **k: RowContext(**{'nf':8, **k}), Queue=lambda **k: Queue(**{'size':4, 'dim':6, **k}),
    Center=lambda **k: Center(**{'dim':6, **k}), cos_momentum=lambda **k: cos_momentum(**{'start':.9, 'pct':.5, **k}), FitCount=lambda **k: FitCount()(**k),
    FitCountUpdate=lambda pct: FitCount().update(pct), EMATeacher=lambda **k: EMATeacher(head=nn.Linear(2,2)).update(**k, head=nn.Linear(2,2)))

above,share,whole = (0, -1, nan, inf, 'a'),(-.1, 1.1, 2, nan, inf, 'a', None),(0, -1, 2.5, nan, 'a', None)
bad = dict(dcl=dict(temp=(*above,None), sigma=above), align_loss=dict(alpha=(*above,None,.5)), uniform_loss=dict(t=(*above,None)), pirl_nce=dict(temp=(*above,None)),
    infomax_nce=dict(clip=(*above,None), reg=(-1,nan,inf,'a',None)), patch_nce=dict(scale=(*above,None)), sigreg=dict(knots=(*whole,1,16), t_max=(*above,None)),
    whiten=dict(eps=(*above,None,1)), one_channel=dict(p=share), RowContext=dict(nf=whole, hidden=whole, layers=whole), Queue=dict(queue_size=whole, dim=whole),
    Center=dict(dim=whole, momentum=share), cos_momentum=dict(start=share, pct=share, end=share), FitCount=dict(pct=share), FitCountUpdate=dict(pct=share), EMATeacher=dict(momentum=share))

@pytest.mark.parametrize('name', fs)
def test_as_it_should_be(name): fs[name](**dict(FitCount=dict(pct=.5), FitCountUpdate=dict(pct=.5), EMATeacher=dict(momentum=.5)).get(name, {}))

@pytest.mark.parametrize('name,k,v', [(f,k,v) for f,ks in bad.items() for k,vs in ks.items() for v in vs])
def test_settings_are_refused(name, k, v):
    with pytest.raises(ValueError, match=f'^{k} must be.*got'): fs[name](**{'size' if k=='queue_size' else k:v})

def test_limits_are_taken():
    assert cos_momentum(1, 1, 0)==0 and cos_momentum(0, 0)==0
    assert cos_momentum(.9, sum([1/49]*49)+1e-9)==pytest.approx(1) # A share that was added up
    for p in (0,1): one_channel(torch.rand(1,4,3,2,2), p)
    assert infomax_nce(R(4,2,6), R(4,3,6), reg=0)>0 and align_loss(R(4,6), R(4,6), 1)>0 and sigreg(R(4,6), R(6,5), knots=np.int64(3))>0
    for m in (0,1): Center(3, m).update(R(2,3))

def test_a_learned_setting_is_taken_as_it_is():
    t,z,w = torch.tensor(.3, requires_grad=True),R(4,6),R(4,6)
    for f in (lambda o: dcl(z, w, o), lambda o: uniform_loss(z, o), lambda o: align_loss(z, w, 1+o), lambda o: pirl_nce(z, w, R(5,6), o), lambda o: patch_nce(z, w, first(4), o)):
        assert torch.autograd.grad(f(t), t)[0]!=0

@pytest.mark.parametrize('f', [lambda: AlignUniform(alpha=.5), lambda: WMSE(eps=0), lambda: LeJEPA(knots=4), lambda: LeJEPA(knots=1)])
def test_class_and_function_refuse_the_same(f):
    with pytest.raises(ValueError, match='must be'): f()

# Shapes: name, call, what the message says
shapes = dict(
    dcl=[((o,p), 'dcl needs') for o,p in ((R(4,6),R(1,6)), (R(4,6),R(4,5)), (no(0,6),no(0,6)), (R(1,6),R(1,6)), (R(2,4,6),R(2,4,6)), (R(4,6).cfloat(),R(4,6).cfloat()), ([1.],[1.]))],
    align_loss=[((o,p), 'align_loss needs') for o,p in ((R(4,6),R(1,6)), (no(0,6),no(0,6)), (R(4,6),None))],
    uniform_loss=[((o,), 'uniform_loss needs') for o in (no(0,6), no(4,0), R(6), R(1,6), R(2,4,6), None, R(4,6).cfloat())],
    pirl_nce=[((R(4,6),R(1,6),R(9,6)), 'one shape'), ((R(4,6),R(4,5),R(9,6)), 'one shape'), ((no(0,6),no(0,6),R(9,6)), 'one row at least'), ((R(4,6),R(4,6),no(0,6)), 'needs negatives'),
        ((R(4,6),R(4,6),R(9,1)), 'negatives .* of width 6'), ((R(4,6),R(4,6),R(6)), 'needs negatives'), ((R(4,6),R(4,6),None), 'needs negatives'),
        ((R(4,6),R(4,6),R(9,6),.07,no(1,9).bool()), r'own as booleans, \(4, 9\): got \(1, 9\)'), ((R(4,6),R(4,6),R(9,6),.07,no(4,9)), 'own as booleans.*float32'), ((R(4,6),R(4,6),R(9,6),.07,[1]), 'own as booleans')],
    infomax_nce=[((R(4,2,6),R(3,2,6)), 'got 3 for 4; pass own'), ((R(4,2,6),R(1,2,6)), 'two images'), ((no(0,2,6),R(4,2,6)), 'none of them 0'), ((R(4,0,6),R(4,2,6)), 'none of them 0'), ((R(4,2,6),R(4,0,6)), 'none of them 0'),
        ((R(4,2,0),R(4,2,0)), 'none of them 0'), ((R(4,2,6),R(4,2,1)), 'places, dim'), ((R(4,6),R(4,6)), 'places, dim'), ((R(4,2,6),None), 'places, dim'),
        ((R(4,2,6),R(5,2,6),first(5)), r'own, a tensor of whole numbers, \(4,\)'), ((R(4,2,6),R(5,2,6),torch.rand(4)), 'whole numbers'), ((R(4,2,6),R(5,2,6),[0,1,2,3]), 'whole numbers'), ((R(4,2,6),R(5,2,6),first(1)), 'whole numbers')],
    patch_nce=[((no(0,6),R(9,6),first(0)), 'needs predictions'), ((R(4,6),no(0,6),first(4)), 'needs targets'), ((R(4,6),R(1,6),no(4).long()), 'two patches'), ((R(4,6),R(9,5),first(4)), 'targets .* of width 6'),
        ((R(4,2,6),R(9,6),first(4)), 'needs predictions'), ((R(4,6),R(9,6),first(3)), 'needs idx'), ((R(4,6),R(9,6),torch.rand(4)), 'needs idx'), ((R(4,6),R(9,6),[0,1,2,3]), 'needs idx'), ((R(4,6),R(9,6),torch.rand(4,9)), 'needs idx')],
    sigreg=[((no(0,6),R(6,5)), 'needs embeddings'), ((R(6),R(6,5)), 'needs embeddings'), ((R(9,6),R(5,7)), r'directions \(6, k\).*got \(5, 7\)'), ((R(9,6),no(6,0)), 'needs directions'), ((R(9,6),R(6)), 'needs directions'), ((R(9,6),None), 'needs directions')],
    whiten=[((no(0,6),), 'needs embeddings'), ((R(9),), 'needs embeddings'), ((R(4,6),), 'raise bs or lower dim'), ((R(2,9,6),), 'needs embeddings'), ((R(9,6)*nan,), 'not finite'), ((R(9,6)*inf,), 'not finite')],
    nearest_in=[((R(4,6),no(0,6)), 'needs items'), ((no(0,6),R(4,6)), 'needs embeddings'), ((R(4,6),R(9,5)), 'items .* of width 6'), ((R(6),R(9,6)), 'needs embeddings')],
    dense_match=[((R(4,9,6),R(1,9,6)), 'two views of the same images: got 4 and 1'), ((R(4,9,6),R(4,9,5)), 'places, dim'), ((R(4,9,6),R(4,0,6)), 'none of them 0'), ((no(0,9,6),no(0,9,6)), 'none of them 0'), ((R(9,6),R(9,6)), 'places, dim')],
    one_channel=[((torch.rand(4,3,5,5),), 'one_channel needs patches'), ((torch.rand(0,4,3,5,5),), 'one_channel needs patches'), ((torch.rand(2,4,0,5,5),), 'one_channel needs patches')],
    center=[((o,), 'Center needs rows') for o in (no(0,6), R(4,1), R(4,5), R(6), None)],
    queue=[((o,), r'queue takes rows \(n, 6\)') for o in (R(4,1), R(4,5), R(6), R(2,4,6))])

calls = dict(center=lambda x: Center(6).update(x), queue=lambda x: Queue(7, 6).put(x))
@pytest.mark.parametrize('name,args,msg', [(f,*o) for f,os in shapes.items() for o in os])
def test_shapes_are_refused(name, args, msg):
    "Nothing is stretched to fit, nothing is averaged over no rows, and nothing fails from deep inside"
    with pytest.raises(ValueError, match=msg): calls.get(name, globals().get(name))(*args)

def test_nothing_to_put():
    q = Queue(7, 6)
    was = q.items.clone()
    q.put(no(0, 6))
    assert torch.equal(q.items, was) and q.at==0

def test_whole_numbers_of_any_type():
    q,k,p,t = R(4,2,6),R(5,3,6),R(4,6),R(9,6)
    for i in (first(4).int(), first(4).to(torch.uint8), TensorCategory(first(4))):
        assert torch.equal(infomax_nce(q, k, i), infomax_nce(q, k, first(4))) and torch.equal(patch_nce(p, t, i), patch_nce(p, t, first(4)))

# Scale and precision

dirs = F.normalize(R(16, 8), dim=0)
pairs = dict(dcl=dcl, dclw=partial(dcl, sigma=.5), align=align_loss, align1=partial(align_loss, alpha=1.), uniform=lambda a,b: uniform_loss(a), pirl=lambda a,b: pirl_nce(a, b, torch.cat([b.roll(1,0),a.roll(3,1)])),
    nearest=lambda a,b: nearest_in(a, F.normalize(b.detach().as_subclass(Tensor).float()/b.detach().abs().max().item(), dim=1)), match=lambda a,b: dense_match(a.view(2,-1,16), b.view(2,-1,16)), whiten=lambda a,b: F.normalize(whiten(a), dim=1),
    sigreg=lambda a,b: sigreg(a, dirs.to(a.dtype)), patch=lambda a,b: patch_nce(a, b, first(len(a))), infomax=lambda a,b: infomax_nce(a.view(-1,2,16), b.view(-1,2,16)))
scale_free = [k for k in pairs if k not in ('sigreg','patch','infomax')]

def run(name, a, b):
    a,b = (o.detach().clone().requires_grad_() for o in (a,b))
    o = pairs[name](a, b)
    if o.requires_grad: (o[:,0] if o.ndim else o).sum().backward()
    return o.detach(), torch.cat([p.grad.flatten() for p in (a,b) if p.grad is not None] or [torch.ones(1)])

def rows(n=40):
    torch.manual_seed(n)
    a = R(n, 16)
    return a/9, (a+R(n, 16))/9

@pytest.mark.parametrize('name', scale_free)
@pytest.mark.parametrize('s', [1e6, 1e15, 1e19, 1e20, 1e30, 1e37])
def test_huge_scales(name, s):
    "Squares overflow from 1e19: neither chance, nor the first of all, and a gradient of the directions"
    a,b = rows()
    (want,g1),(got,g) = run(name, a*1e4, b*1e4),run(name, a*s, b*s)
    if not got.is_floating_point(): assert torch.equal(got, want) and got.unique().numel()>3
    assert torch.allclose(got.float(), want.float(), rtol=1e-4, atol=1e-3) and torch.isfinite(g).all() and g.abs().max()>0

@pytest.mark.parametrize('name', [o for o in scale_free if o!='whiten']) # which leaves what is tiny as it is
@pytest.mark.parametrize('s', [1e-8, 1e-20, 1e-30])
def test_tiny_scales(name, s):
    a,b = rows()
    (want,_),(got,g) = run(name, a, b),run(name, a*s, b*s)
    assert torch.allclose(got.float(), want.float(), rtol=1e-4, atol=1e-3) and torch.isfinite(g).all()

@pytest.mark.parametrize('name', pairs)
def test_autocast_changes_nothing(name):
    "Not one bit, nor in the gradient"
    a,b = rows()
    want,g1 = run(name, a, b)
    a,b = (o.clone().requires_grad_() for o in (a,b))
    with torch.autocast('cpu', torch.bfloat16): got = pairs[name](a, b)
    if got.requires_grad: (got[:,0] if got.ndim else got).sum().backward()
    g = torch.cat([p.grad.flatten() for p in (a,b) if p.grad is not None] or [torch.ones(1)])
    assert torch.equal(got, want) and torch.equal(g, g1)

@pytest.mark.parametrize('name', pairs)
@pytest.mark.parametrize('dtype', [torch.half, torch.bfloat16])
def test_computed_in_float32(name, dtype):
    a,b = (o.to(dtype) for o in rows())
    assert torch.equal(pairs[name](a, b), pairs[name](a.float(), b.float())) or name=='sigreg'
    assert pairs[name](a, b).dtype in (torch.float32, torch.long)

@pytest.mark.parametrize('name', pairs)
def test_tensors_of_fastais_types(name):
    a,b = rows()
    assert type(pairs[name](TensorImage(a), TensorImage(b))) is Tensor and torch.equal(pairs[name](TensorImage(a), TensorImage(b)), pairs[name](a, b))

@pytest.mark.parametrize('name', ['dcl','dclw','align','uniform','pirl'])
@pytest.mark.parametrize('kind', ['alike','zero','row of zeros'])
def test_collapse_is_finite(name, kind):
    a,b = rows(6)
    a,b = dict(alike=(a[:1].repeat(6,1),)*2, zero=(a*0,b*0)).get(kind) or (torch.cat([a[:1]*0,a[1:]]),b)
    l,g = run(name, a, b)
    assert torch.isfinite(l) and torch.isfinite(g).all() and g.abs().max()<1e4

@pytest.mark.parametrize('name', [o for o in pairs if o not in ('nearest','match','whiten')])
@pytest.mark.parametrize('v', [nan, inf])
def test_what_is_not_finite_is_not_hidden(name, v):
    a,b = rows()
    a[2,3] = v
    assert not torch.isfinite(pairs[name](a, b))

def test_directions_that_are_kept_are_directions():
    "What is held of huge embeddings is not a row of zeros"
    z = R(5,6)
    q = Queue(5, 6)
    q.put(z*1e25)
    close(q.items, F.normalize(z, dim=1), eps=1e-5)
    obj = PIRL(dim=6)
    obj.n_items = 5
    obj.build(6)
    obj.ids = first(5)
    obj.train().loss([z*1e25,z*1e25], None, None)
    close(obj.memory, F.normalize(z, dim=1), eps=1e-5)
    t = TiCo(dim=6)
    close(t.eval().loss([z*1e25], [z], None), t.loss([z], [z], None), eps=1e-5)
    r = ReSSL(dim=6, queue_size=9)
    r.queue = Queue(9, 6)
    close(r.eval().loss([z*1e25], [z*1e25], None), r.loss([z], [z], None), eps=1e-4)
