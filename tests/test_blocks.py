"Losses of large batches against 64 bits and against the whole matrix; what they take of memory; where they may be used"
import pytest, subprocess, sys
from torch._subclasses.fake_tensor import FakeTensorMode
from utils import *
from test_objectives import ready, term_of, grads
from fastai_contrastive.blocks import *
from fastai_contrastive.blocks import _lse_grads
from fastai_contrastive.losses import *
from fastai_contrastive.losses import _unit
from fastai_contrastive.objectives import *
from fastai_contrastive.objectives.dcl import dcl
from fastai_contrastive.objectives.alignuniform import uniform_loss
from fastai_contrastive.objectives.pirl import pirl_nce
from fastai_contrastive.objectives.cpc import patch_nce
from fastai_contrastive.objectives.amdim import infomax_nce
from fastai_contrastive.objectives.timecontrastive import time_nce

n,m,dim = 700,900,16 # Tiles are 512 wide: some are narrower, some off the diagonal
def rows(): return torch.randn(n, dim),torch.randn(n, dim),torch.randn(m, dim)
def classes():
    y = torch.randint(90, (n,))
    y[5] = 1000 # Has no partner
    return y

def exact(q, k, t, left_out=()):
    "Scores of unit rows in 64 bits; `left_out`: how far from the diagonal"
    s = F.normalize(q.double())@F.normalize(k.double()).T/t
    for o in left_out: s.diagonal(o).fill_(-torch.inf)
    return s

def own(q, k): return (F.normalize(q.double())*F.normalize(k.double())).sum(1)

def sup_con_by_hand(z, y, t):
    s,partner = exact(z, z, t),(y[:,None]==y).fill_diagonal_(False)
    each = -(s-exact(z, z, t, [0]).logsumexp(1, keepdim=True))
    return torch.stack([each[i][partner[i]].mean() for i in range(len(z)) if partner[i].any()]).mean()

def dcl_by_hand(a, b, t):
    z = torch.cat([a,b])
    return exact(z, z, t, [0,n,-n]).logsumexp(1).mean() - own(a, b).mean()/t

def uniform_by_hand(z): return (2*2*(exact(z, z, 1)-1))[tuple(torch.triu_indices(n, n, 1))].exp().mean().log()

def nt_xent_by_hand(a, b, t):
    z = torch.cat([a,b])
    return (exact(z, z, t, [0]).logsumexp(1) - own(a, b).repeat(2)/t).mean()

def queue_by_hand(q, k, c, t):
    return (torch.cat([own(q, k)[:,None],exact(q, c, 1)], 1)/t).logsumexp(1).mean() - own(q, k).mean()/t

# Each loss of two batches, more rows, a temperature and classes; and what its paper says, in 64 bits
losses = dict(
    nt_xent=(lambda a,b,c,t,y: nt_xent(a, b, t), lambda a,b,c,t,y: nt_xent_by_hand(a, b, t)),
    info_nce=(lambda a,b,c,t,y: info_nce(a, b, temp=t), lambda a,b,c,t,y: (exact(a, b, t).logsumexp(1)-own(a, b)/t).mean()),
    queue=(lambda a,b,c,t,y: info_nce(a, b, c, t), lambda a,b,c,t,y: queue_by_hand(a, b, c, t)),
    sup_con=(lambda a,b,c,t,y: sup_con(a, y, t), lambda a,b,c,t,y: sup_con_by_hand(a, y, t)),
    dcl=(lambda a,b,c,t,y: dcl(a, b, t), lambda a,b,c,t,y: dcl_by_hand(a, b, t)),
    uniform=(lambda a,b,c,t,y: uniform_loss(a, 2.), lambda a,b,c,t,y: uniform_by_hand(a)))

def with_grads(f, *args):
    args = [o.detach().clone().requires_grad_() if o.is_floating_point() else o for o in args]
    l = f(*args)
    l.backward()
    return l.detach(),[o.grad for o in args if o.requires_grad]

def check_close(got, want, eps=1e-5):
    assert abs(got[0]-want[0])<=eps*abs(want[0])
    assert [o is None for o in got[1]]==[o is None for o in want[1]] and any(o is not None for o in want[1])
    for p,q in zip(got[1], want[1]):
        if q is not None: assert q.any() and (p-q).abs().max()<=eps*q.abs().max()

@pytest.mark.parametrize('name', losses)
@pytest.mark.parametrize('temp', [.07,.5])
@pytest.mark.parametrize('apart', [.1,1.])
def test_equal_to_64_bits(name, temp, apart):
    "Loss, and the gradient on every row and on a learned temperature"
    f,by_hand = losses[name]
    a,b,c = rows()
    args = a,a+apart*b,c,torch.tensor(temp),classes()
    with block_limit(0): got = with_grads(f, *args)
    check_close(got, with_grads(by_hand, *args), 2e-5)

whole = dict(
    pirl=lambda a,b,c,t,y: pirl_nce(a, b, c, t, y[:,None]==torch.arange(m)),
    patches=lambda a,b,c,t,y: patch_nce(a, c, torch.arange(n).flip(0), t),
    amdim=lambda a,b,c,t,y: infomax_nce(a.unflatten(0, (-1,7)), b.unflatten(0, (-1,7))),
    time=lambda a,b,c,t,y: time_nce(a, torch.arange(n)//7, torch.arange(n)%7, temp=t, mine=slice(70,210)))

@pytest.mark.parametrize('name', whole)
def test_equal_to_the_whole(name):
    args = *rows(),torch.tensor(.2),classes()
    want = with_grads(whole[name], *args)
    with block_limit(3000): check_close(with_grads(whole[name], *args), want)

@pytest.mark.parametrize('name', sorted(k for k,v in Objective.registry.items() if v.__module__.startswith('fastai_contrastive.') and v.takes=='images'))
def test_every_objective(name):
    "Term, gradients and what is remembered, with matrices of more than 24 entries in blocks"
    def _of(limit):
        obj,enc = ready(name)
        with block_limit(limit):
            c = term_of(obj, enc)
            c.backward()
        return c.detach(),list({**grads(obj), **grads(enc)}.values()),list(obj.state_dict().values())
    want,got = _of(math.inf),_of(24)
    assert torch.allclose(got[0], want[0], rtol=1e-5, atol=1e-6)
    scale = max(o.abs().max() for o in want[1] if o is not None)
    for p,q in zip(got[1], want[1], strict=True): assert p is q is None or (p-q).abs().max()<=1e-4*scale
    assert all(torch.allclose(p.float(), q.float(), atol=1e-5) for p,q in zip(got[2], want[2], strict=True))

def test_small_losses_keep_their_digits():
    "Partners that are found easily: the loss is 1e-4, and a difference of two numbers near 10 would have three digits of it"
    z = F.normalize(torch.randn(300, 64), dim=1)
    w = z+1e-3*torch.randn(300, 64)
    with block_limit(0): got = nt_xent(z, w, .06)
    a,b = z.double(),w.double()
    o = exact(torch.cat([a,b]), torch.cat([a,b]), .06, [0,300,-300])
    want = torch.log1p((o.logsumexp(1)-own(a, b).repeat(2)/.06).exp()).mean()
    assert want<1e-3 and abs(got-want)<1e-4*want

def test_below_the_limit_nothing_is_new():
    "2,048 rows are the most that are compared as a whole"
    seen = []
    with pytest.MonkeyPatch.context() as mp:
        mp.setattr('fastai_contrastive.losses.row_lse', lambda a, **kw: (seen.append(len(a)), row_lse(a, **kw))[1])
        for k in 1024,1025: nt_xent(torch.randn(k, 4), torch.randn(k, 4))
    assert seen==[2050]

@pytest.mark.parametrize('name', losses)
def test_autocast(name):
    args = *rows(),torch.tensor(.2),classes()
    f = losses[name][0]
    with block_limit(0):
        want = with_grads(f, *args)
        with torch.autocast('cpu', dtype=torch.bfloat16): got = with_grads(f, *args)
    check_close(got, want, 1e-7)

@pytest.mark.parametrize('name', losses)
def test_on_a_device_that_is_not_there(name):
    "Nothing is made on another device, and no number read back"
    with FakeTensorMode(), torch.device('cuda'):
        args = *[torch.randn(o, dim, requires_grad=True) for o in (n,n,m)],torch.ones(()),torch.zeros(n, dtype=torch.long)
        for limit in 0,math.inf:
            with block_limit(limit): assert losses[name][0](*args).device.type=='cuda'
        # PyTorch's engine goes back through the graph on a device that is there only
        for b in None,args[2].detach():
            da,db = _lse_grads(args[0].detach(), b, torch.ones(n), torch.ones(n), n, (True,True,False))
            assert da.device.type=='cuda' and (b is None) == (db is None)

@pytest.mark.parametrize('name', losses)
def test_functional_gradients(name):
    a,b,c = rows()
    y = classes()
    with block_limit(0):
        want = with_grads(losses[name][0], a, b, c, .2*torch.ones(()), y)[1][0]
        assert torch.allclose(torch.func.grad(lambda o: losses[name][0](o, b, c, .2, y))(a), want, atol=1e-6)

def test_no_second_derivative():
    z = torch.randn(50, 4, requires_grad=True)
    with block_limit(0): g, = torch.autograd.grad(nt_xent(z, z.flip(0)), z, create_graph=True)
    with pytest.raises(RuntimeError, match='block_limit'): g.sum().backward()

@pytest.mark.parametrize('limit', [0,math.inf])
def test_no_partner(limit):
    "An error on a CPU; on a GPU, which would have to be waited for, nothing is learnt"
    with block_limit(limit), pytest.raises(ValueError, match='two rows of one class'): sup_con(torch.randn(4, 3), torch.arange(4))

@pytest.mark.parametrize('args,kw', [((torch.zeros(3),),{}), ((torch.zeros(3,2),torch.zeros(3,4)),{}), ((torch.zeros(3,2),torch.zeros(0,2)),{}),
                                     ((torch.zeros(3,2),),dict(period=1)), ((torch.zeros(1,2),),dict(period=2))])
def test_bad_rows(args, kw):
    with pytest.raises(ValueError, match='row_lse'): row_lse(*args, **kw)

peaks = '''
import math, torch
from pathlib import Path
from fastai_contrastive.blocks import block_limit
from fastai_contrastive.losses import nt_xent
def resident(what): return int(next(o for o in Path('/proc/self/status').read_text().splitlines() if o.startswith(what)).split()[1])/1024
def peak(limit, n):
    z = torch.randn(n, 128, requires_grad=True)
    Path('/proc/self/clear_refs').write_text('5') # Forget the highest so far
    start = resident('VmRSS')
    with block_limit(limit): nt_xent(z, z.flip(0)).backward()
    return resident('VmHWM')-start
peak(0, 600), peak(math.inf, 600)
print(peak(0, 3072), peak(math.inf, 3072))
'''
@pytest.mark.skipif(not os.access('/proc/self/clear_refs', os.W_OK), reason='the system does not tell')
def test_peak_memory():
    "Of a process: a matrix of 6,144 by 6,144 is 144 MB, and there are three"
    r = subprocess.run([sys.executable, '-c', peaks], capture_output=True, text=True)
    blocks,all_ = map(float, r.stdout.split())
    assert all_>400 and blocks<.1*all_, r.stderr+r.stdout
