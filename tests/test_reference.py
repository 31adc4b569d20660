"The same computation in plain PyTorch, without fastai: the same losses, the same weights"
import pytest
from utils import *
from fastai_contrastive.pretext.core import *
from fastai_contrastive.pretext.rotation import *

temp,lr,epochs = .2,.05,2

def nt_xent_by_hand(a, b):
    "Equation 1 of arXiv 2002.05709, one anchor at a time"
    z = [o/o.norm() for o in torch.cat([a,b])]
    n,total = len(a),0
    for i in range(2*n):
        s = {k:torch.exp(z[i]@z[k]/temp) for k in range(2*n) if k!=i}
        total = total - torch.log(s[(i+n)%(2*n)]/sum(s.values()))
    return total/(2*n)

def torch_opt(name, ps):
    "PyTorch's own; decay only where there are weights that multiply"
    if name=='sgd': return torch.optim.SGD(ps, lr=lr)
    groups = [dict(params=[p for p in ps if p.ndim>1], weight_decay=.01), dict(params=[p for p in ps if p.ndim==1], weight_decay=0.)]
    return torch.optim.AdamW(groups, lr=lr, betas=(.9,.99), eps=1e-5)

def train_by_hand(enc, head, proj, batches, opt, make, weight):
    "Losses of the task and of the term at each step; `head=None` for the term alone"
    opt = torch_opt(opt, [p for m in (enc, head, proj) if m is not None for p in m.parameters()])
    losses = []
    for x,y in batches:
        task,pool = torch.zeros(()),lambda x: enc(x).mean((2,3))
        if head is not None:
            q,a = make(x, y)
            task = F.cross_entropy(head(pool(q)), a)
        views = torch.cat([x, x.flip(-1)*.9])
        # Beside a task the statistics that the views' pass moves are thrown away
        stats = {} if head is None else {k:v.clone() for k,v in enc.named_buffers()}
        f = torch.func.functional_call(enc, stats, (views,)).mean((2,3))
        c = nt_xent_by_hand(*proj(f).chunk(2))
        (task+weight*c).backward()
        opt.step()
        opt.zero_grad()
        losses.append((task.item(), c.item()))
    return losses

class Losses(Callback):
    "Task's loss and the weighted term of each step"
    order = 40
    def before_fit(self):
        if not self.learn.lock.locked(): self.got = []
    def after_loss(self):
        if self.training: self.got.append((self.loss.item(), (self.learn.loss_grad-self.learn.loss).item()))

def compare(learn, cb, opt, head, make, weight):
    enc,head,proj = deepcopy(learn.model[0].body if isinstance(learn.model[0], Encoder) else learn.model[0]),deepcopy(head),deepcopy(cb.objective.projector)
    batches = [tuple(o.as_subclass(Tensor) for o in b)+(None,)*(2-len(b)) for b in learn.dls.train]*epochs
    learn.opt_func = dict(sgd=SGD, adam=Adam)[opt]
    fit(learn, epochs, 'fit', lr, cbs=(rec:=Losses()))
    want = train_by_hand(enc, head, proj, batches, opt, make, weight)
    assert len(want)==len(rec.got)>=6
    got = [(t,c/weight) for t,c in rec.got] if head is not None else [(0,t) for t,_ in rec.got]
    assert np.allclose(got, want, atol=2e-4, rtol=1e-4)
    trained = learn.model[0].body if isinstance(learn.model[0], Encoder) else learn.model[0]
    for a,b in [(trained, enc), (cb.objective.projector, proj)] + ([(learn.model[1], head)] if head is not None else []):
        for (k,v),w in zip(a.state_dict().items(), b.state_dict().values()): assert torch.allclose(v, w, atol=2e-4, rtol=1e-3), k
    return learn

each_opt = pytest.mark.parametrize('opt', ['sgd','adam'])

@each_opt
def test_simclr_alone(opt):
    set_seed(2)
    obj = built(SimCLR(temp, dim=8))
    learn = contrastive_learner(make_dls(), body(), obj, views=two_views)
    was = bn_stats(learn.model)
    compare(learn, learn.simclr, opt, None, None, 1.)
    assert not torch.equal(was, bn_stats(learn.model))

@each_opt
def test_cross_entropy_and_simclr(opt):
    set_seed(2)
    cb = term(.5, objective=built(SimCLR(temp, dim=8)))
    model = pooled()
    # The pooling is in the reference's loop
    head = model[1][2]
    learn = make_learn(cb, model=nn.Sequential(Encoder(model[0]), head))
    compare(learn, cb, opt, head, lambda x,y: (x,y), .5)

class Turns(Rotation):
    "A turn that depends on the image alone, so that it can be repeated"
    @staticmethod
    def turns(x): return (x.mean((1,2,3))*1e4).long()%4
    def make(self, x):
        k = self.turns(x)
        return rotate(x, k), k

@each_opt
def test_rotation_and_simclr(opt):
    set_seed(2)
    cb = term(.5, objective=built(SimCLR(temp, dim=8)))
    learn = pretext_learner(make_dls(labelled=False), body(), Turns(), cbs=cb)
    def _make(x, y):
        k = Turns.turns(x)
        return torch.stack([torch.rot90(o, int(i), (1,2)) for o,i in zip(x,k)]),k
    assert all(len(Turns.turns(b[0]).unique())>1 for b in learn.dls.train)
    compare(learn, cb, opt, learn.model[1], _make, .5)
