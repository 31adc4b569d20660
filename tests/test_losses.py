"The losses against their papers' equations, written out one term at a time; what losses, heads and `gather` refuse and put up with"
import forked, math, pytest, torch.distributed as dist
from fastai.vision.all import *
from fastai_contrastive.distributed import *
from fastai_contrastive.heads import *
from fastai_contrastive.losses import *

for o in [o for o in globals() if o.startswith('test')]: del globals()[o]   # fastcore's `test_eq` and the like are no tests for pytest to collect

def nt_xent_by_hand(z1, z2, temp):
    "Equation 1 of arXiv 2002.05709, pair by pair"
    z = [*z1.double(), *z2.double()]
    n = len(z1)
    sim = lambda a,b: (a@b/(a.norm()*b.norm())).item()/temp
    total = 0.
    for i in range(2*n):
        j = (i+n)%(2*n)
        total += -math.log(math.exp(sim(z[i],z[j]))/sum(math.exp(sim(z[i],z[k])) for k in range(2*n) if k!=i))
    return total/(2*n)

@pytest.mark.parametrize('n,temp', [(2,.5), (5,.1), (7,1.), (16,.2)])
def test_nt_xent(n, temp):
    z1,z2 = torch.randn(n,11),torch.randn(n,11)*3
    assert abs(nt_xent(z1,z2,temp).item()-nt_xent_by_hand(z1,z2,temp))<1e-5

@pytest.mark.parametrize('scale', [1e-6, 1e6])
def test_nt_xent_finite(scale):
    z = (torch.randn(6,8)*scale).requires_grad_()
    nt_xent(z, z.roll(1,0)).backward()
    assert torch.isfinite(z.grad).all()

def test_nt_xent_bad_input():
    with pytest.raises(ValueError, match='at least two'): nt_xent(torch.randn(1,4), torch.randn(1,4))
    with pytest.raises(ValueError, match='one shape'): nt_xent(torch.randn(4,4), torch.randn(5,4))

# What a pure function is asked to take

def unlike(n, dim): return torch.randn(n, dim),torch.randn(n, dim)

# The losses as functions of two (n, dim) tensors; `scale_free`: only directions count
pairs = dict(nt_xent=nt_xent, info_nce=info_nce, queue=lambda a,b: info_nce(a, b, torch.ones(3, a.shape[-1])), neg_cosine=neg_cosine,
    sup_con=lambda a,b: sup_con(torch.cat([a,b]), torch.arange(len(a)).repeat(2)), barlow=barlow, vicreg=vicreg,
    swapped_ce=lambda a,b: swapped_ce(a, b.float().softmax(-1)))
scale_free = ['nt_xent','info_nce','queue','neg_cosine','sup_con']

def loss_and_grad(f, a, b):
    a,b = (o.detach().clone().requires_grad_() for o in (a,b))
    l = f(a, b)
    l.backward()
    return l.detach(), torch.cat([o.grad.flatten() for o in (a,b) if o.grad is not None])

@pytest.mark.parametrize('name', ['nt_xent','info_nce','queue','sup_con','swapped_ce'])
@pytest.mark.parametrize('temp', [0, -1, .0, float('nan'), float('inf'), '1', None])
def test_temp_is_refused(name, temp):
    "A temperature of -1 prefers the strangers, and 0 gives nan"
    z,w = unlike(4, 6)
    f = dict(nt_xent=lambda: nt_xent(z, w, temp=temp), info_nce=lambda: info_nce(z, w, temp=temp), queue=lambda: info_nce(z, w, w, temp),
        sup_con=lambda: sup_con(z, torch.tensor([0,0,1,1]), temp=temp), swapped_ce=lambda: swapped_ce(z, w.softmax(1), temp))[name]
    with pytest.raises(ValueError, match='temp must be a finite number, above 0'): f()

def test_a_learned_temp_is_taken_as_it_is():
    z,w = unlike(4, 6)
    t = torch.tensor(.3, requires_grad=True)
    l = nt_xent(z, w, temp=t)
    l.backward()
    assert l.item()==pytest.approx(nt_xent(z, w, temp=.3).item(), abs=1e-6) and t.grad!=0

bad = float('nan'),float('inf'),-1,'a'
@pytest.mark.parametrize('f,kw,msg', [
    *[(sinkhorn, dict(iters=o), 'iters must be a whole number, 1 or more') for o in (0, -1, 2.5, '3', None)],
    *[(sinkhorn, dict(eps=o), 'eps must be a finite number, above 0') for o in (0,*bad)],
    *[(barlow, {k:o}, f'{k} must be a finite number, 0 or more') for k in ('lambd','eps') for o in bad],
    *[(vicreg, {k:o}, f'{k} must be a finite number, 0 or more') for k in ('inv','var','cov') for o in bad],
    *[(vicreg, dict(eps=o), 'eps must be a finite number, above 0') for o in (0,*bad)]])
def test_settings_are_refused(f, kw, msg):
    z,w = unlike(4, 6)
    with pytest.raises(ValueError, match=msg): f(*((z,) if f is sinkhorn else (z,w)), **kw)

@pytest.mark.parametrize('name', pairs)
@pytest.mark.parametrize('a,b', [((4,6),(4,5)), ((4,6),(1,6)), ((4,6),(3,6)), ((2,4,6),(2,4,6)), ((6,),(6,)), ((0,6),(0,6)), ((4,0),(4,0))])
def test_shapes_are_refused(name, a, b):
    "Nothing is stretched to fit, and nothing is averaged over no rows"
    with pytest.raises((ValueError,RuntimeError) if name=='sup_con' else ValueError) as e: pairs[name](torch.rand(*a), torch.rand(*b))
    assert name=='sup_con' or 'needs' in str(e.value)

@pytest.mark.parametrize('name', ['nt_xent','info_nce','barlow','vicreg'])
def test_one_image_is_refused(name):
    with pytest.raises(ValueError, match='at least two images'): pairs[name](*unlike(1, 6))

@pytest.mark.parametrize('o', [torch.zeros(0,6), torch.zeros(3,5), torch.zeros(6), torch.zeros(1,3,6)])
def test_negatives_are_refused(o):
    "None at all would be a question with one answer, and a loss of 0"
    with pytest.raises(ValueError, match='negatives'): info_nce(*unlike(4, 6), o)

@pytest.mark.parametrize('y', [torch.rand(4), torch.zeros(4,1).long(), torch.zeros(3).long(), [0,0,1,1], torch.zeros(4).numpy(), None])
def test_labels_are_refused(y):
    with pytest.raises(ValueError, match='sup_con needs'): sup_con(torch.rand(4,6), y)

def test_labels_of_any_whole_type():
    z,y = torch.randn(4,6),torch.tensor([0,0,1,1])
    want = sup_con(z, y)
    for o in (y.int(), y.to(torch.uint8), y.bool(), TensorCategory(y), y-7): assert torch.equal(sup_con(TensorImage(z), o), want)

@pytest.mark.parametrize('name', pairs)
@pytest.mark.parametrize('dtype', [torch.half, torch.bfloat16, torch.long])
def test_computed_in_float32(name, dtype):
    a,b = (o.mul(9).to(dtype) for o in unlike(8, 6))
    l = pairs[name](a, b)
    assert l.dtype==torch.float32 and type(l) is Tensor and torch.equal(l, pairs[name](a.float(), b.float()))

@pytest.mark.parametrize('name', pairs)
def test_autocast_changes_nothing(name):
    a,b = unlike(16, 32)
    with torch.autocast('cpu', torch.bfloat16): l = pairs[name](a, b)
    assert torch.equal(l, pairs[name](a, b))

@pytest.mark.parametrize('name', pairs)
def test_complex_is_refused(name):
    a,b = (o.cfloat() for o in unlike(4, 6))
    with pytest.raises((ValueError,NotImplementedError,RuntimeError)): pairs[name](a, b)

@pytest.mark.parametrize('name', pairs)
@pytest.mark.parametrize('kind', ['alike','zero','zero rows','one zero','row of zeros'])
def test_collapse_is_finite(name, kind):
    "All rows alike, all or some of them zero: loss and gradient are finite, and the gradient is of ordinary size"
    a,b = unlike(6, 8)
    a,b = dict(alike=(a[:1].repeat(6,1),)*2, zero=(a*0,b*0)).get(kind) or ((a*0,b) if kind=='one zero' else (torch.cat([a[:1]*0,a[1:]]),b))
    l,g = loss_and_grad(pairs[name], a, b)
    assert torch.isfinite(l) and torch.isfinite(g).all() and g.abs().max()<1e4

@pytest.mark.parametrize('name', scale_free+['barlow'])
@pytest.mark.parametrize('s', [1e10, 1e19, 1e25, 1e37])
def test_huge_scales(name, s):
    "The squares overflow from 1e19: the loss is not chance, the gradient is not 0"
    a,b = unlike(6, 8)
    a,b = (o/o.abs().max() for o in (a,b))
    l,g = loss_and_grad(pairs[name], a*s, b*s)
    want,g1 = loss_and_grad(pairs[name], a*9, b*9)
    assert l.item()==pytest.approx(want.item(), abs=1e-3) and torch.isfinite(g).all() and g.abs().max()>0

@pytest.mark.parametrize('name', scale_free)
@pytest.mark.parametrize('s', [1e-8, 1e-20, 1e-30])
def test_tiny_scales(name, s):
    a,b = unlike(6, 8)
    l,g = loss_and_grad(pairs[name], a*s, b*s)
    assert l.item()==pytest.approx(pairs[name](a, b).item(), abs=1e-4) and torch.isfinite(g).all()

@pytest.mark.parametrize('v', [float('nan'), float('inf')])
@pytest.mark.parametrize('name', pairs)
def test_what_is_not_finite_is_not_hidden(name, v):
    a,b = unlike(6, 8)
    a[2,3] = v
    assert not torch.isfinite(pairs[name](a, b))

def test_barlow_dimension_that_does_not_vary():
    "With eps=0, too: it agrees with nothing, and has no gradient"
    z = torch.randn(8, 3)
    z[:,1] = 2.
    for eps in (0., 1e-5):
        l,g = loss_and_grad(partial(barlow, lambd=0., eps=eps), z, z)
        assert l.item()==pytest.approx(1, abs=1e-3) and torch.isfinite(g).all()

@pytest.mark.parametrize('n,k', [(1,4),(3,8),(12,4)])
@pytest.mark.parametrize('iters', [1,2,3])
def test_sinkhorn_rows_sum_to_1(n, k, iters):
    for scale in (1., 1e4, 1e30):
        q = sinkhorn(torch.randn(n, k)*scale, iters=iters)
        assert torch.allclose(q.sum(1), torch.ones(n), atol=1e-5) and q.dtype==torch.float32 and not q.requires_grad

@pytest.mark.parametrize('shape', [(4,), (0,4), (4,0), (2,3,4)])
def test_sinkhorn_shapes(shape):
    with pytest.raises(ValueError, match='sinkhorn needs similarities'): sinkhorn(torch.zeros(*shape))

# Heads

@pytest.mark.parametrize('sizes', [(), (8,), (8,0), (8.,4), (8,None), ([8,4],), ('8',4), (8,-1)])
def test_mlp_sizes(sizes):
    with pytest.raises(ValueError, match='mlp needs at least two sizes'): mlp(*sizes)

@pytest.mark.parametrize('act', [nn.ReLU(), None, 'relu'])
def test_mlp_act(act):
    with pytest.raises(TypeError, match='act must be a class'): mlp(8, 4, 2, act=act)

def test_mlp_takes_numpys_numbers(): assert mlp(*np.array([8,4,2]))(torch.rand(3,8)).shape==(3,2)

@pytest.mark.parametrize('args', [(8,1), (8,0), (8,2.5), (0,4), (8.,4), (8,'3')])
def test_bad_prototypes(args):
    with pytest.raises(ValueError, match='must be 2 or more|Prototypes needs'): Prototypes(*args)

@pytest.mark.parametrize('z', [torch.rand(3,7), torch.rand(8), torch.rand(0,8), torch.rand(2,3,8)])
def test_prototypes_shapes(z):
    with pytest.raises(ValueError, match='Prototypes'): Prototypes(8, 4)(z)

def test_prototypes_precision_and_scale():
    p,z = Prototypes(8, 4),torch.randn(3,8)
    want = F.normalize(z)@p.weight.T
    assert torch.allclose(p(z), want, atol=1e-6) and torch.allclose(p(z*1e25), want, atol=1e-6) and torch.allclose(p(z*1e-25), want, atol=1e-6)
    assert torch.allclose(p(z.half()), want, atol=1e-2) and p(z.half()).dtype==torch.float32
    with torch.autocast('cpu', torch.bfloat16): assert torch.equal(p(z), p(z.clone())) and p(z).dtype==torch.float32
    assert p(z*0).abs().max()==0

# Several processes

def test_a_number_has_no_rows():
    with pytest.raises(ValueError, match='none: pass'): gather(torch.tensor(1.))

def test_mean_of_whole_numbers(): assert all_mean(torch.tensor([1,2])).dtype==torch.float32

def _gather_worker(n, path):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{path}/store', rank=n, world_size=2)
    res = {str(o):gather((torch.arange(4)[n:3*n+1]).to(o)).tolist() for o in (torch.float, torch.half, torch.long, torch.int)}
    res['none here'] = gather(torch.ones(2*n, 3)).shape
    for k,x in dict(width=torch.ones(2, 3+n), type=torch.ones(2, 3).to((torch.float,torch.half)[n]), dims=torch.ones(2, *[3]*(1+n))).items():
        try: res[k] = gather(x)
        except ValueError as e: res[k] = str(e)
    res['mean'] = all_mean(torch.tensor([n,3])).tolist()
    torch.save(res, f'{path}/{n}.pt')
    dist.destroy_process_group()

def test_gather_of_rows_that_differ(tmp_path):
    "Two processes: any type is gathered, also where one of them has nothing; rows of two kinds are the same error on both, and nobody hangs"
    forked.spawn(_gather_worker, (str(tmp_path),), 2)
    for i in range(2):
        r = torch.load(tmp_path/f'{i}.pt', weights_only=False)
        for o in (torch.float, torch.half, torch.long, torch.int): assert r[str(o)]==[0,1,2,3]
        assert r['none here']==(2,3) and r['mean']==[.5,3.]
        for k in ('width','type','dims'): assert f'rank {i} has' in r[k], (k, r[k])
