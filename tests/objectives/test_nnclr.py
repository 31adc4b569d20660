"NNCLR against the paper's pseudo-code, and what its queue holds"
import pytest, torch
from utils import *
from fastai_contrastive.objectives.nnclr import *

def by_hand(z1, z2, predictor, Q, temp):
    "Algorithm 1 of arXiv 2104.14548, loop by loop: for each neighbour a softmax over the predictions of the other view"
    n,total = len(z1),0.
    p1,p2 = (predictor(z).double() for z in (z1,z2))
    for z,p in ((z1,p2),(z2,p1)):
        p = torch.stack([o/o.norm() for o in p])
        for i in range(n):
            best = max(range(len(Q)), key=lambda k: float(Q[k].double()@(z[i]/z[i].norm()).double()))
            logits = torch.stack([Q[best].double()@o for o in p])/temp
            total += -(logits[i]-logits.exp().sum().log())/2/n
    return total.item()

def small(queue_size=20, **kwargs):
    o = built(NNCLR(dim=6, hidden=12, pred_hidden=8, queue_size=queue_size, **kwargs))
    return o.train()

@pytest.mark.parametrize('n,temp', [(2,.5), (5,.1), (7,1.)])
def test_loss(n, temp):
    o = small(temp=temp).eval() # Batch norm of the predictor by its running statistics: row by row
    z1,z2 = torch.randn(n,6),torch.randn(n,6)*3
    with torch.no_grad(): want = by_hand(z1, z2, o.predictor, o.queue.items, temp)
    assert abs(o.loss([z1,z2], None, None).item()-want)<1e-5*max(1, want)

def test_both_views_share_the_predictor_batch():
    "In training, batch norm sees both views' projections at once, as it does in the projector"
    o = small()
    z1,z2,Q = torch.randn(5,6),torch.randn(5,6),o.queue.items
    p = o.predictor(torch.cat([z1,z2])).detach()
    want = by_hand(z1, z2, lambda z: p[:5] if z is z1 else p[5:], Q, .1)
    assert abs(o.loss([z1,z2], None, None).item()-want)<1e-4

@pytest.mark.parametrize('size', [3,4,7,20])
def test_queue_holds_first_views_in_order(size):
    "Any batch size and any queue size, the last ones smaller or larger than the queue"
    o,seen = small(size),[]
    for n in (4,3,5,2,4):
        z1,z2 = torch.randn(n,6)*5,torch.randn(n,6)
        o.loss([z1,z2], None, None)
        seen += list(F.normalize(z1, dim=1))
    at = o.queue.at.item()
    assert at==18%size
    got = [o.queue.items[(at+i)%size] for i in range(size)][-min(18,size):]
    close(torch.stack(got), torch.stack(seen[-len(got):]), eps=1e-6)

def test_neighbours_come_from_before_this_batch():
    "A batch that is its own neighbour in the queue would have an easy time: it is put in after the loss"
    o = small(queue_size=4)
    z = torch.randn(4,6)
    Q = o.queue.items.clone()
    assert torch.equal(nearest_in(z, Q), torch.stack([Q[(Q@F.normalize(v, dim=0)).argmax()] for v in z]))
    a = o.loss([z,z], None, None)
    close(nearest_in(z, o.queue.items), F.normalize(z, dim=1), eps=1e-6)
    assert not torch.isclose(a, o.loss([z,z], None, None))

def test_validation_leaves_the_queue():
    o = small().eval()
    was = {k:v.clone() for k,v in o.state_dict().items()}
    o.loss([torch.randn(5,6),torch.randn(5,6)], None, None)
    assert all(torch.equal(v, was[k]) for k,v in o.state_dict().items())

def test_gradient_goes_through_the_predictions_alone():
    "z1 is pulled by the loss of view 2's neighbour only"
    o = small().eval()
    z1,z2 = (torch.randn(5,6, requires_grad=True) for _ in range(2))
    Q = o.queue.items
    o.loss([z1,z2], None, None).backward()
    a = z1.detach().clone().requires_grad_()
    p = F.normalize(o.predictor(a), dim=1)
    (F.cross_entropy(nearest_in(z2, Q)@p.T/.1, torch.arange(5))/2).backward()
    close(z1.grad, a.grad, eps=1e-5)
    assert not nearest_in(z2, Q).requires_grad

def test_queue_is_state():
    o = small()
    o.loss([torch.randn(5,6),torch.randn(5,6)], None, None)
    assert {'queue.items','queue.at'}<=set(o.state_dict())
    b = small()
    b.load_state_dict(o.state_dict())
    assert torch.equal(b.queue.items, o.queue.items) and b.queue.at==5

def test_errors():
    with pytest.raises(ValueError, match='temp must be above 0: got 0'): NNCLR(temp=0)
    with pytest.raises(ValueError, match='queue_size must be 1 or more: got 0'): NNCLR(queue_size=0)
