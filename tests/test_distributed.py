"Two gloo processes against one"
import forked, pytest, torch.distributed as dist
from utils import *
from fastai.distributed import DistributedDL, DistributedTrainer
from fastai_contrastive.distributed import *
from fastai_contrastive.heads import HeadNorm
from fastai_contrastive.losses import nt_xent
from fastai_contrastive.memory import Center
from fastai_contrastive.term import *

class Joined(Objective):
    "Negatives from both processes; no batch norm, whose statistics would be each process's own"
    def build(self, nf):
        with torch.random.fork_rng(): torch.manual_seed(5); self.projector = nn.Linear(nf, 6)
    def loss(self, z, t, y): return nt_xent(*map(gather, z), temp=.3)

class Local(Joined):
    "Each process's own negatives"
    def loss(self, z, t, y): return nt_xent(*z, temp=.3)

def turns(*args, weight=.5):
    "Turns that the pixels tell, and a head that is drawn the same everywhere: two halves of a batch are asked what the batch is"
    task = ByPixels()
    task.head = same_draws(task.head)
    return PretextTerm(task, weight)

def terms(kind):
    "Of each kind: one that is to equal one process on the joined batch, and one whose batch is each process's own"
    if kind=='pretext': return dict(joined=turns, local=turns)
    return {k:lambda o=o: term(.5, objective=o()) for k,o in dict(joined=Joined, local=Local).items()}

def drawn(kind, seed):
    "With a head that each process would draw differently, and batch norms"
    if kind=='pretext':
        task = question(norms=True)
        task.head = lambda enc, f=task.head: (torch.manual_seed(seed), f(enc))[1]
        return PretextTerm(task, .5, name='drawn')
    class Drawn(SimCLR):
        def build(self, nf): torch.manual_seed(seed); super().build(nf)
    return term(.5, objective=Drawn(dim=8), name='drawn')

class Seen(Callback):
    "Loss of each step"
    order = 40
    def before_fit(self): self.got = []
    def after_loss(self):
        if self.training: self.got.append(self.learn.loss_grad.item())

def run(cb, dls, epochs=1, alone=False, model=None, cbs=None):
    "Weights and losses of a few steps of SGD from the same start"
    set_seed(7)
    model = model or pooled(plain_body())
    if alone and isinstance(cb, ContrastiveCallback): learn = contrastive_learner(dls, model[0], cb.objective, views=two_views, opt_func=SGD)
    elif alone: learn = Learner(dls, ViewsOnly(create_encoder(model[0])), loss_func=TermOnly(), cbs=cb, opt_func=SGD)
    else: learn = Learner(dls, model, loss_func=CrossEntropyLossFlat(), cbs=cb, opt_func=SGD)
    cb = term_of(learn)
    kind = type(learn.model)
    with quietly(learn): learn.fit(epochs, .2, cbs=[seen:=Seen(), *L(cbs)])
    assert type(learn.model) is kind and opt_ids(learn.opt)==[[id(p) for p in learn.model.parameters()]]
    return dict(model=torch.cat([p.detach().flatten() for p in learn.model.parameters()]), heads=head_ws(cb), losses=seen.got, sd=cb.state_dict(), weight=cb.history.weight.tolist())

def _broadcast(self, t, rank):
    t = torch.LongTensor(t)
    dist.broadcast(t, rank)
    return t.tolist()

def rows_of(i):
    "Rows, far from 0, and what their outputs are weighed by"
    torch.manual_seed(4)
    return torch.randn(8, 3)[i]*3+5,torch.randn(8, 3)[i]

def norm_and_center(i):
    "Two steps of a norm and of a centre on rows `i`"
    norm,center = HeadNorm(3),Center(3, .75)
    (x,w),x2 = rows_of(i),rows_of(i)[0].square()
    x.requires_grad_()
    y = norm(x)
    (y*w).sum().backward()
    norm(x2)
    for o in (x,x2): center.update(o)
    return dict(y=y.detach(), x=x.grad, w=norm.weight.grad, b=norm.bias.grad, mean=norm.running_mean, var=norm.running_var, seen=norm.num_batches_tracked, center=center.mean)

def _worker(n, path):
    torch.set_num_threads(1)
    os.environ.update(RANK=str(n), LOCAL_RANK=str(n), WORLD_SIZE='2', LOCAL_WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', ACCELERATE_USE_CPU='true')
    dist.init_process_group('gloo', init_method=f'file://{path}/store', rank=n, world_size=2)
    # fastai sends the indices by way of a GPU
    DistributedDL._broadcast = _broadcast
    def _ddp(*args, **kwargs): return run(*args, cbs=DistributedTrainer(sync_bn=False, cpu=True), **kwargs)
    res,mk = {},partial(make_dls, n=16, bs=8)
    for k in kinds:
        t,model = terms(k),pooled()
        for p in model.parameters(): dist.broadcast(p.data, 0)
        res[k] = dict(joined=_ddp(t['joined'](), mk(), 4), alone=_ddp(t['joined'](), mk(), 4, alone=True), local=_ddp(t['local'](), mk()),
            drawn=_ddp(drawn(k, n), make_dls(n=48, bs=8), 2, model=model))
    res['balanced'] = _ddp(turns(weight=Balanced(.7, 2, .5)), mk(), 4)
    x = torch.arange(6.).view(3,2) if n==0 else torch.arange(6., 10.).view(2,2)
    g = gather(x.requires_grad_())
    (g*torch.arange(10.).view(5,2)*(n+1)).sum().backward()
    res['gather'],res['grad'],res['mean'],res['who'] = g.detach(),x.grad,all_mean(tensor([float(n), 4.])),(is_dist(), world(), rank())
    res['norm'] = norm_and_center(slice(3) if n==0 else slice(3,8))
    torch.save(res, f'{path}/{n}.pt')
    dist.destroy_process_group()

@pytest.fixture(scope='module')
def two(tmp_path_factory):
    "What each of two processes got"
    p = tmp_path_factory.mktemp('dist')
    forked.spawn(_worker, (str(p),), 2)
    return [torch.load(p/f'{i}.pt', weights_only=False) for i in range(2)]

def test_gather(two):
    assert [o['who'] for o in two]==[(True,2,0),(True,2,1)]
    for o in two:
        assert torch.equal(o['gather'], torch.arange(10.).view(5,2))
        assert torch.equal(o['mean'], tensor([.5,4.]))
    # Each process's use of a row sends gradient back to it: once plus twice
    assert torch.equal(torch.cat([o['grad'] for o in two]), 3*torch.arange(10.).view(5,2))

def test_norm_and_center_of_unequal_batches(two):
    "Three rows here and five there are one batch of eight, backwards too"
    one,(a,b) = norm_and_center(slice(8)),[o['norm'] for o in two]
    for k in ('y','x'): assert torch.allclose(torch.cat([a[k],b[k]]), one[k], atol=1e-5), k
    for k in ('w','b'): assert torch.allclose(a[k]+b[k], one[k], atol=1e-5), k
    for k in ('mean','var','seen','center'): assert torch.allclose(a[k], one[k], rtol=1e-5) and torch.equal(a[k], b[k]), k

each_kind = pytest.mark.parametrize('kind', kinds)

@each_kind
@pytest.mark.parametrize('what', ['joined','alone','local','drawn'])
def test_same_weights_on_both(two, what, kind):
    a,b = (o[kind][what] for o in two)
    assert torch.allclose(a['model'], b['model'], atol=1e-7) and torch.allclose(a['heads'], b['heads'], atol=1e-7)

@each_kind
@pytest.mark.parametrize('alone', [False,True])
def test_two_processes_are_one_with_the_joined_batch(two, alone, kind):
    "For a contrastive term by gathered negatives"
    one = run(terms(kind)['joined'](), make_dls(n=16, bs=16), 4, alone=alone)
    a,b = (o[kind]['alone' if alone else 'joined'] for o in two)
    # The task's loss is each half's own, and so is a question's; a contrastive term is the joined batch's on both
    assert np.allclose([(i+j)/2 for i,j in zip(a['losses'], b['losses'])], one['losses'], atol=1e-5)
    if alone and kind=='contrastive': assert np.allclose(a['losses'], b['losses'], atol=1e-6)
    assert len(one['losses'])==4 and one['losses'][-1]<one['losses'][0]
    assert torch.allclose(a['model'], one['model'], atol=1e-5) and torch.allclose(a['heads'], one['heads'], atol=1e-5)

def test_a_balanced_weight_is_that_of_the_joined_batch(two):
    one = run(turns(weight=Balanced(.7, 2, .5)), make_dls(n=16, bs=16), 4)
    a,b = (o['balanced'] for o in two)
    assert a['weight']==b['weight'] and len(set(a['weight']))==2 and np.allclose(a['weight'], one['weight'], rtol=1e-4)
    for k in ('model','heads'): assert torch.allclose(a[k], one[k], atol=1e-5) and torch.allclose(a[k], b[k], atol=1e-7)

@each_kind
def test_gradient_is_the_mean_of_single_processes(two, kind):
    "After one step of SGD weights are linear in the gradient"
    halves = [make_dls(n=16, bs=8) for _ in range(2)]
    for i,dls in enumerate(halves): dls.loaders[0] = [list(dls.train)[i]]
    one = [run(terms(kind)['local'](), dls) for dls in halves]
    assert not torch.allclose(one[0]['model'], one[1]['model'], atol=1e-4)
    for k in ('model','heads'): assert torch.allclose(two[0][kind]['local'][k], (one[0][k]+one[1][k])/2, atol=1e-6)
    assert np.allclose([o[kind]['local']['losses'][0] for o in two], [o['losses'][0] for o in one], atol=1e-6)

@each_kind
def test_state_is_not_gathered(two, kind):
    "Each process can save and load alone"
    sd = two[1][kind]['drawn']['sd']
    cb = term(objective=SimCLR(dim=8), name='drawn') if kind=='contrastive' else with_head(PretextTerm(question(norms=True), name='drawn'))
    cb.load_state_dict(sd)
    assert torch.equal(head_ws(cb), two[1][kind]['drawn']['heads'])
