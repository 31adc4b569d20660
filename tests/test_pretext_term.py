"A pretext task's loss as a term: beside whatever there is, against loops written by hand, its metric, its state, bad input"
import itertools, pytest
from itertools import chain
import matplotlib
matplotlib.use('Agg')
from utils import *
from sklearn.metrics import f1_score
from fastai.callback.channelslast import ChannelsLast
from fastai.callback.training import GradientAccumulation
from fastai_contrastive.encoder import get_encoder
from fastai_contrastive.term import *

pytestmark = pytest.mark.usefixtures('strict')

makes = dict(rotation=lambda **kw: PretextTerm(question(fixed=True, seeded=True), **kw),
    inpainting=lambda **kw: PretextTerm(question(fixed=True, seeded=True, norms=True), **kw),
    simclr=lambda **kw: term(seeded=True, name='simclr', **kw))

def rotation(weight=1., fixed=False, seeded=False, **kwargs): return PretextTerm(question(fixed, seeded), weight, **kwargs)
def ready(cb, nf=12):
    cb.module['head'] = cb.task.head(SimpleNamespace(nf=nf))
    return cb

def wide_dls():
    dls = make_dls()
    for dl in dls: dl.dataset = [(F.pad(o[0], (0,8)), *o[1:]) for o in dl.dataset]
    return dls

# Beside whatever there is

def beside_labels(cbs, dls): return make_learn(cbs, dls, opt_func=SGD)

def beside_a_task(cbs, dls):
    set_seed(7)
    base = question(fixed=True, seeded=True, norms=not any(o.name=='inpainting' for o in cbs))
    return pretext_learner(dls, body(), base, cbs=cbs, opt_func=SGD)

def beside_nothing(cbs, dls):
    set_seed(7)
    return Learner(dls, ViewsOnly(create_encoder(body())), loss_func=TermOnly(), cbs=cbs, opt_func=SGD)

bases = dict(labels=beside_labels, task=beside_a_task, nothing=beside_nothing)
sets = ['rotation'], ['inpainting'], ['rotation','simclr'], ['simclr','inpainting'], ['rotation','inpainting'], ['inpainting','rotation','simclr']

def run_with(base, names, with_dl, off=None, n=8):
    "One step of SGD; the term `off` has weight 0"
    dl = make_dls(n=12, bs=6, labelled=False).train if with_dl else None
    cbs = [makes[o](weight=0. if o==off else .5, dl=dl) for o in names]
    learn = bases[base](cbs, make_dls(n=n, labelled=base=='labels'))
    was = ws(get_encoder(learn.model))
    fit(learn, 1, 'fit', .1)
    return learn,cbs,was

@pytest.mark.parametrize('with_dl', [False,True])
@pytest.mark.parametrize('names', sets, ids='+'.join)
@pytest.mark.parametrize('base', bases)
def test_beside_whatever_there_is(base, names, with_dl):
    "Finite, a column each and in order, and every term's gradient reaches the encoder: without it there are other weights"
    learn,cbs,was = run_with(base, names, with_dl)
    now = ws(get_encoder(learn.model))
    own = dict(labels=['accuracy'], nothing=[], task=['accuracy' if 'inpainting' in names else 'masked_mae'])[base]
    cols = col_names(*cbs)[base=='nothing' and len(cbs)==1:]
    if base=='nothing' and names==['simclr']: cols = []
    assert learn.recorder.metric_names==['epoch','train_loss','valid_loss',*own,*cols,'time']
    assert np.isfinite(learn.recorder.values[-1]).all() and now.isfinite().all() and not torch.equal(was, now)
    assert all(head_ws(cb).isfinite().all() for cb in cbs)
    for o in names:
        other,cbs2,_ = run_with(base, names, with_dl, off=o)
        assert not torch.allclose(ws(get_encoder(other.model)), now, atol=1e-6), o
        # and what is off has not moved
        for a,b in zip(cbs, cbs2): assert (not b.is_built or len(b.loan.state)==0) if b.name==o else torch.isfinite(head_ws(b)).all()

def test_beside_an_objective_alone():
    "Among a contrastive_learner's callbacks: both are the loss, in training and in validation"
    cb = PretextTerm('rotation', .5)
    learn = fit(contrastive_learner(make_dls(labelled=False), body(), SimCLR(dim=8), cbs=cb))
    assert learn.recorder.metric_names==['epoch','train_loss','valid_loss','simclr_loss','rotation_loss','rotation_accuracy','time']
    assert np.isfinite(learn.recorder.values[-1]).all()
    with quietly(learn): a,b = learn.validate()[0],learn.validate()[0]
    assert a==b and a>0

# Against plain PyTorch

def hand_model():
    set_seed(7)
    return pooled()

@contextmanager
def still(m):
    "Batch norms that normalise by the batch and leave their running statistics as they are"
    bns = [o for o in m.modules() if isinstance(o, nn.BatchNorm2d)]
    for o in bns: o.momentum = 0.
    yield
    for o in bns: o.momentum = .1

def said_by(cb):
    "The turns that a term draws, as it draws them"
    ks = []
    cb.task.make = lambda x, make=cb.task.make: (o:=make(x), ks.append(o[1].clone()))[0]
    return ks

def cycled(dl, n): return [b[0].as_subclass(Tensor) for _,b in zip(range(n), chain.from_iterable(itertools.repeat(dl)))]

def by_hand(dls, other, ks, head, n_epoch, lr, weight):
    "Cross-entropy and `weight(i, l1, l2)` times a rotation loss on a second loader: plain PyTorch, SGD with momentum"
    model,head = hand_model(),deepcopy(head)
    model.train()
    opt = torch.optim.SGD([*model.parameters(), *head.parameters()], lr=lr, momentum=.9)
    batches = [(x.as_subclass(Tensor),y.as_subclass(Tensor)) for x,y in dls.train]*n_epoch
    losses = []
    for i,((x,y),u,k) in enumerate(zip(batches, cycled(other, len(batches)), ks)):
        task = F.cross_entropy(model(x), y)
        turned = torch.stack([torch.rot90(o, int(j), (1,2)) for o,j in zip(u, k)])
        with still(model): term = F.cross_entropy(head(model[0](turned).mean((2,3))), k)
        w = weight(i, task, term, list(model[0].parameters()))
        opt.zero_grad()
        (task + w*term).backward()
        opt.step()
        losses.append((task.item(), term.item(), float(w)))
    return model,head,losses

def trained(weight, dls, other, n_epoch, lr):
    cb = ready(rotation(weight, dl=other))
    head,ks = deepcopy(cb.module['head']),said_by(cb)
    learn = make_learn(cb, dls, hand_model(), opt_func=partial(SGD, mom=.9), wd=0.)
    fit(learn, n_epoch, 'fit', lr)
    return learn,cb,head,ks

def check_same(learn, cb, model, head):
    for a,b in ((learn.model, model), (cb.module['head'], head)):
        for (k,u),v in zip(a.state_dict().items(), b.state_dict().values()):
            if 'num_batches' not in k: assert torch.allclose(u, v, atol=1e-5), k

def test_the_same_weights_as_a_loop_written_by_hand():
    "Labels, and half a rotation loss on a second loader, which is shorter and of another batch size"
    dls,other = make_dls(n=20),make_dls(n=16, bs=6, labelled=False).train
    learn,cb,head,ks = trained(.5, dls, other, 3, .1)
    model,head,losses = by_hand(dls, other, ks, head, 3, .1, lambda *_: .5)
    assert len(ks)==len(losses)==9 and {len(k) for k in ks}=={6,4}
    check_same(learn, cb, model, head)
    assert np.allclose(cb.history.loss, [o[1] for o in losses], atol=1e-5)

def balance_by_hand(share, every, momentum, limit=100.):
    "The weight, from the lengths of the two gradients, each of a backward pass of its own"
    log = None
    def _weight(i, task, term, ps):
        nonlocal log
        if i%every==0:
            n = [torch.cat([g.flatten() for g in torch.autograd.grad(o, ps, retain_graph=True)]).norm().item() for o in (task,term)]
            new = math.log(n[0]/n[1])
            log = new if log is None else momentum*log + (1-momentum)*new
        return min(limit, share*math.exp(log))
    return _weight

@pytest.mark.parametrize('every,momentum', [(1,0.), (2,.5)])
def test_balanced_the_same_weights_as_a_loop_written_by_hand(every, momentum):
    dls,other = make_dls(n=20),make_dls(n=16, bs=6, labelled=False).train
    learn,cb,head,ks = trained(Balanced(.7, every, momentum), dls, other, 3, .1)
    model,head,losses = by_hand(dls, other, ks, head, 3, .1, balance_by_hand(.7, every, momentum))
    check_same(learn, cb, model, head)
    assert np.allclose(cb.history.weight, [o[2] for o in losses], rtol=1e-4)
    assert cb.history.weight.nunique()==-(-9//every)

# The metric

def test_the_metrics_column_is_the_accuracy_by_hand():
    "Over the epoch's training images, the last batch a small one; at lr 0, so that they can all be asked afterwards"
    cb = ready(rotation(), 12)
    seen,ks = [],said_by(cb)
    cb.task.make = lambda x, make=cb.task.make: (seen.append(x.clone()), make(x))[1]
    learn = fit(make_learn(cb, make_dls(n=20), pooled(plain_body())), 2, 'fit', 0.)
    assert [len(k) for k in ks]==[8,8,4]*2 and len(set(map(str, ks)))>3
    for epoch in range(2):
        right = []
        for x,k in zip(seen[epoch*3:][:3], ks[epoch*3:]):
            turned = torch.stack([torch.rot90(o, int(j), (1,2)) for o,j in zip(x, k)])
            with torch.no_grad(): right += (cb.module['head'](learn.model[0](turned).mean((2,3))).argmax(1)==k).tolist()
        assert np.isclose(col(learn, 'rotation_accuracy', epoch), np.mean(right))

def test_alone_the_metric_is_validations():
    cb = ready(rotation(), 12)
    learn = Learner(make_dls(), ViewsOnly(create_encoder(plain_body())), loss_func=TermOnly(), cbs=cb)
    ks = said_by(cb)
    fit(learn, 1, 'fit', 0.)
    seen,right = [b[0].as_subclass(Tensor) for b in learn.dls.valid],[]
    for x,k in zip(seen, ks[3:], strict=True):
        turned = torch.stack([torch.rot90(o, int(j), (1,2)) for o,j in zip(x, k)])
        with torch.no_grad(): right += (cb.module['head'](learn.model[0](turned)).argmax(1)==k).tolist()
    assert np.isclose(col(learn, 'rotation_accuracy'), np.mean(right)) and len(right)==12

class Judged(Rotation):
    metrics = [F1Score(average='macro'), error_rate]
del PretextTask.registry['judged']

def test_metrics_that_gather_the_whole_epoch():
    cb = ready(PretextTerm(Judged()))
    ks,said = said_by(cb),[]
    cb.module['head'].register_forward_hook(lambda m, i, o: said.append(o.detach().argmax(1)))
    learn = fit(make_learn(cb, make_dls(n=20)), 2)
    assert learn.recorder.metric_names[4:]==['judged_loss','judged_f1_score','judged_error_rate','time']
    for epoch in range(2):
        k,p = (torch.cat(o[epoch*3:][:3]) for o in (ks,said))
        assert np.isclose(col(learn, 'judged_f1_score', epoch), f1_score(k, p, average='macro'))
        assert np.isclose(col(learn, 'judged_error_rate', epoch), (k!=p).float().mean())

def test_metrics_are_the_terms_own():
    "Two terms, and the task itself, of one task object: each counts for itself"
    task = Judged()
    a,b = PretextTerm(task, .5, name='a'),PretextTerm(task, .5, name='b', dl=make_dls(n=40, labelled=False).train)
    set_seed(7)
    learn = fit(pretext_learner(make_dls(labelled=False), body(), task, cbs=[a,b]))
    vals = dict(zip(learn.recorder.metric_names[1:], learn.recorder.values[-1]))
    assert {'f1_score','error_rate','a_f1_score','b_f1_score'}<=set(vals) and np.isfinite(list(vals.values())).all()
    assert len(task.metrics[0].preds)==2 and [len(o._judges[0].preds) for o in (a,b)]==[3,3]

@pytest.mark.parametrize('monitor,comp', [('rotation_loss',np.less), ('rotation_accuracy',np.greater)])
def test_monitors(monitor, comp):
    mons = [SaveModelCallback(monitor=monitor), EarlyStoppingCallback(monitor=monitor, patience=5), ReduceLROnPlateau(monitor=monitor)]
    learn = fit(make_learn(rotation(), path=Path.cwd()), 3, cbs=[*mons, CSVLogger()])
    assert all(m.comp is comp for m in mons) and mons[0].best==(min if comp is np.less else max)(col(learn, monitor, i) for i in range(3))
    assert np.allclose(pd.read_csv('history.csv')[monitor], [col(learn, monitor, i) for i in range(3)], atol=1e-5)

# State

def steps(learn, a, b):
    "Batches `a` to `b` of the training loader, once round and once more"
    dl = learn.dls.train
    learn.dls.loaders[0] = [(list(dl)*2)[i] for i in range(a,b)]
    fit(learn, 1, 'fit', 1e-2, cbs=At('before_validate', throw(CancelValidException())))
    learn.dls.loaders[0] = dl

@pytest.mark.parametrize('weight', [.5,'balanced'])
@pytest.mark.parametrize('name', ['rotation','inpainting'])
def test_it_goes_on_bit_for_bit(name, weight):
    "Head, momentum, batch norms and measured weight, in a callback that has no head yet"
    def _mk(): return make_learn(cb:=makes[name](weight=weight), path=Path.cwd(), opt_func=Adam),cb
    def _all(l, c): return [ws(l.model), ws(c.module), *[o for s in c.loan.state_dict(c.heads)['state'] for o in s.values()], c.history.weight.iloc[-1]]
    l1,c1 = _mk()
    steps(l1, 0, 3)
    l1.save('three')
    torch.save(c1.state_dict(), 'cb.pth')
    steps(l1, 3, 5)
    l2,c2 = _mk()
    c2.load_state_dict(torch.load('cb.pth', weights_only=True))
    l2.load('three', with_opt=True, weights_only=False)
    steps(l2, 3, 5)
    for a,b in zip(_all(l1, c1), _all(l2, c2)): assert torch.equal(a, b) if isinstance(a, Tensor) else a==b

def test_a_state_that_waits_for_the_head_is_not_lost():
    sd = fit(make_learn(rotation())).rotation.state_dict()
    cb = rotation()
    cb.load_state_dict(sd)
    again = cb.state_dict()
    assert torch.equal(again['module']['head.weight'], sd['module']['head.weight']) and again['opt'] is not sd['opt']
    c2 = deepcopy(cb)
    fit(make_learn(c2), 1, 'fit', 0.)
    assert torch.equal(c2.module['head'].weight, sd['module']['head.weight'])

def test_states_of_other_tasks_are_refused():
    sd = fit(make_learn(rotation())).rotation.state_dict()
    cb = PretextTerm(Inpainting(grid=4), name='rotation')
    with pytest.raises(ValueError, match=r"state of a term of 'rotation'.*asks Inpainting"):
        cb.load_state_dict(sd)
    def _five(cb):
        cb.task.head = lambda enc: nn.Linear(enc.nf, 5)
        return cb
    other = _five(rotation())
    other.load_state_dict(sd)
    learn = make_learn(other)
    for _ in range(2): # and does not go on with half of it
        with pytest.raises(ValueError, match=r'does not fit the head of Rotation\(\).*other settings'): fit(learn)
    with pytest.raises(ValueError, match='does not fit the head'): with_head(_five(rotation())).load_state_dict(sd)

def test_a_head_stays_with_encoders_of_its_width():
    cb = rotation()
    fit(learn:=make_learn(cb))
    learn.remove_cb(cb)
    wide = nn.Sequential(nn.Sequential(ConvLayer(3, 24, stride=2)), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 4)))
    with pytest.raises(ValueError, match='made for an encoder of width 12, this one has 24'): fit(make_learn(cb, model=wide))

def test_copies_of_a_learner_train_apart():
    a = fit(make_learn([rotation(), PretextTerm(Inpainting(grid=4), 'balanced')]))
    b = deepcopy(a)
    assert b.rotation.learn is b and b.rotation.module is not a.rotation.module and b.inpainting.weight is not a.inpainting.weight
    fit(a), fit(b)
    assert torch.equal(ws(a.model), ws(b.model)) and torch.equal(head_ws(a.inpainting), head_ws(b.inpainting))
    assert list(a.recorder.values[-1])==list(b.recorder.values[-1])

# As it is written

def test_repr():
    assert repr(PretextTerm('rotation'))=='PretextTerm(Rotation())'
    r = repr(PretextTerm(Inpainting(grid=4), 'balanced', dl=make_dls(), update_bn=True, name='holes'))
    assert r=="PretextTerm(Inpainting(grid=4), weight='balanced', dl=<DataLoaders>, update_bn=True, name='holes')"

@pytest.mark.parametrize('f, e, msg', [
    (lambda: PretextTerm(Rotation),                            TypeError,  r'pass Rotation\(\)'),
    (lambda: PretextTerm('rotatoin'),                          ValueError, "Did you mean 'rotation'"),
    (lambda: PretextTerm(SimCLR()),                            TypeError,  'must be a PretextTask'),
    (lambda: rotation(-1),                                     ValueError, 'weight must be'),
    (lambda: rotation('ballanced'),                            ValueError, "'balanced'"),
    (lambda: make_learn([rotation(), rotation()]),             ValueError, "called 'rotation' already: pass name="),
    (lambda: fit(make_learn(rotation(), wide_dls())), ValueError, 'Rotation needs square images: got 16x24'),
    (lambda: fit(make_learn(PretextTerm(Inpainting(grid=32)))), ValueError, r'Inpainting\(grid=32\) on images of 16x16'),
    (lambda: fit(make_learn(rotation(dl=DataLoader([torch.zeros(3,16,16, dtype=torch.uint8)]*8, bs=4)))), TypeError, 'uint8.*IntToFloatTensor'),
    (lambda: fit(make_learn(rotation(dl=DataLoader([torch.rand(5)]*8, bs=4)))), TypeError, 'need images'),
    (lambda: fit(make_learn(rotation(dl=make_dls(bs=1).train))), ValueError, 'rotation needs batches of 2 images or more'),
])
def test_bad_input_is_named(f, e, msg):
    with pytest.raises(e, match=msg): f()

class Odd(Rotation):
    "What a task can do wrong"
    def __init__(self, metrics=(), loss=CrossEntropyLossFlat()):
        super().__init__()
        self.metrics,self.loss_func = list(metrics),loss
    def __repr__(self): return 'Odd()'
del PretextTask.registry['odd']

@pytest.mark.parametrize('kw,msg', [
    (dict(metrics=[rmse]), r'(?s)the metric _?rmse cannot judge the answers of Odd\(\) \(.*take it out'),
    (dict(loss=None), r'Odd\(\) has no loss_func'),
    (dict(loss=partial(F.cross_entropy, reduction='none')), r'the loss of Odd\(\) must be one number for a batch: it gives \(8,\)')])
def test_a_task_that_is_wrong_is_named(kw, msg):
    with pytest.raises(ValueError, match=msg): fit(make_learn(PretextTerm(Odd(**kw))))

def test_a_metric_that_asks_for_the_loss():
    cb = ready(PretextTerm(Odd([Perplexity()])))
    vals = spy(cb)
    learn = fit(make_learn(cb))
    assert np.isclose(col(learn, 'odd_perplexity'), torch.stack(vals).mean().exp().item(), rtol=1e-5)

# Other callbacks, other images

def test_a_task_that_paints_in_place_does_not_touch_the_batch():
    class Painter(Rotation):
        def make(self, x):
            x.zero_()
            return x,torch.zeros(len(x), dtype=torch.long)
    del PretextTask.registry['painter']
    seen = []
    learn = make_learn([PretextTerm(Painter(), name='a'), PretextTerm(Painter(), name='b')])
    for cbs in ([], [ChannelsLast()]):
        seen.clear()
        fit(learn, cbs=[Note(seen), *cbs])
        assert all(torch.equal(a, b[0].as_subclass(Tensor)) for a,b in zip(seen, learn.dls.train))

class Note(Callback):
    order = 1
    def __init__(self, seen): self.seen = seen
    def before_batch(self):
        if self.training: self.seen.append(self.x.clone().as_subclass(Tensor))

@pytest.mark.parametrize('c', [1,5])
@pytest.mark.parametrize('task', [Rotation(), Inpainting(grid=4)])
def test_channels(task, c):
    ds = [(TensorImage(x[:1].expand(c,-1,-1)), TensorCategory(y)) for x,y in zip(*images(16))]
    dls = DataLoaders.from_dsets(ds, ds, bs=8, device='cpu', num_workers=0)
    cb = PretextTerm(task)
    learn = fit(finetune_learner(dls, create_encoder('xresnet18', c, widen=.125), n_out=4, loss_func=CrossEntropyLossFlat(), cbs=cb))
    assert np.isfinite(learn.recorder.values[-1]).all()
    with pytest.raises(ValueError, match=rf"{cb.name}: the images of the second loader have 3 channels, and the encoder takes {c}"):
        learn.remove_cb(cb)
        fit(learn, cbs=PretextTerm(deepcopy(task), dl=make_dls().train))

def test_images_of_another_size_from_a_second_loader():
    for task in (Rotation(), Inpainting(grid=4)):
        assert np.isfinite(fit(make_learn(PretextTerm(task, dl=make_dls(size=24, labelled=False)))).recorder.values[-1]).all()

def vit(**kwargs): return create_encoder('vit_tiny_patch16_224', depth=1, embed_dim=24, num_heads=2, patch_size=4, img_size=16, **kwargs)

def test_a_vit():
    cbs = [rotation(), PretextTerm(Inpainting(grid=4))]
    learn = finetune_learner(make_dls(), vit(), n_out=4, loss_func=CrossEntropyLossFlat(), cbs=cbs)
    was = ws(learn.model[0])
    fit(learn)
    assert np.isfinite(learn.recorder.values[-1]).all() and not torch.equal(was, ws(learn.model[0]))
    learn.remove_cbs(cbs)
    with pytest.raises(ValueError, match=r'rotation failed on images of 24×24 pixels .*give the term images of another size'):
        fit(learn, cbs=rotation(dl=make_dls(size=24)))

def test_all_four_turns():
    cb = ready(PretextTerm(Rotation(all_four=True)))
    vals = spy(cb)
    learn = fit(make_learn(cb, make_dls(n=20)))
    assert np.isclose(col(learn, 'rotation_loss'), sum(v.item()*n for v,n in zip(vals, (8,8,4)))/20)

class Where(PretextTask):
    "A question in two parts, answered in two parts: which half was darkened, and by how much"
    def make(self, x):
        left,by = torch.rand(len(x))<.5,torch.rand(len(x))
        m = (torch.arange(x.shape[-1])<x.shape[-1]//2)==left[:,None]
        return (torch.where(m[:,None,None,:], x*by[:,None,None,None], x), by[:,None]),(left.long(),by)
    def head(self, encoder): return Both(encoder.nf)
    def loss_func(self, pred, left, by): return F.cross_entropy(pred[0], left) + F.mse_loss(pred[1], by)
    def metrics_(pred, left, by): return (pred[0].argmax(1)==left).float().mean()
    metrics = [metrics_]
del PretextTask.registry['where']

class Both(Module):
    def __init__(self, nf): self.side,self.by = nn.Linear(nf, 2),nn.Linear(nf+1, 1)
    def forward(self, f, by): return self.side(f),self.by(torch.cat([f,by], 1))[:,0]

def test_questions_and_answers_of_several_parts():
    learn = make_learn(PretextTerm(Where()))
    was = ws(learn.model)
    fit(learn)
    assert learn.recorder.metric_names[4:]==['where_loss','where_metrics_','time'] and np.isfinite(learn.recorder.values[-1]).all()
    assert not torch.equal(was, ws(learn.model))

def test_gradient_accumulation_is_one_batch_of_that_size():
    res = []
    for bs,cbs in ((16,None), (8,GradientAccumulation(16))):
        set_seed(7)
        cb = ready(PretextTerm(ByPixels(), .5))
        nn.init.constant_(cb.module['head'].weight, .1)
        cb.module['head'].bias.data = torch.arange(4.)/10
        learn = fit(make_learn(cb, make_dls(n=32, bs=bs), pooled(plain_body()), opt_func=partial(SGD, mom=.9)), 2, 'fit', .1, cbs=cbs)
        res.append(torch.cat([ws(learn.model), head_ws(cb)]))
    assert torch.allclose(*res, atol=1e-5)

def test_everything_but_training_is_as_without(tmp_path):
    "Of a pretext learner with a term of the other task"
    set_seed(7)
    learn = fit(pretext_learner(make_dls(labelled=False), body(), Rotation(), cbs=[PretextTerm(Inpainting(grid=4)), own_term(0.)]))
    plain = pretext_learner(make_dls(labelled=False), body(), Rotation())
    plain.model.load_state_dict(learn.model.state_dict())
    with quietly(learn), quietly(plain):
        assert list(learn.validate())==list(plain.validate())
        assert all(torch.equal(a, b) for a,b in zip(learn.get_preds(), plain.get_preds()))
        learn.show_results()

def test_added_and_removed_between_fits():
    learn = make_learn()
    cb = rotation()
    learn.add_cb(cb)
    fit(learn)
    was = head_ws(cb)
    learn.remove_cb(cb)
    fit(learn)
    assert learn.recorder.metric_names==['epoch','train_loss','valid_loss','accuracy','time'] and torch.equal(was, head_ws(cb))
    learn.add_cb(cb)
    fit(learn)
    assert not torch.equal(was, head_ws(cb)) and learn.recorder.metric_names[4:]==[*col_names(cb),'time']

def test_summary_and_the_graph():
    from fastai.callback.progress import ShowGraphCallback
    learn = make_learn(rotation())
    with quietly(learn): learn.summary()
    with learn.no_logging(): learn.fit(2, cbs=ShowGraphCallback())
    s = learn.summary()
    assert 'rotation' in s.lower() or 'PretextTerm' in s
