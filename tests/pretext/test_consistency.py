"Consistency: against a loop by hand, whom the gradient reaches, what stays as it was, beside what it can be and cannot"
import pytest
from utils import *
from fastai.callback.hook import hook_output
from fastai_contrastive.pretext.consistency import *
from fastai_contrastive.term import TermOnly
from fastai_contrastive.views import Views

pytestmark = pytest.mark.usefixtures('strict')

def still_views(x): return x.flip(-1)*.9,x

def cons(weight=1., views=still_views, loss='kl', temp=.4, threshold=.3, task_kw={}, **kwargs):
    "A term whose views are the same at every call (None: its own)"
    task = Consistency(loss, temp, threshold, **task_kw)
    if views is not None: task.make = views
    return PretextTerm(task, weight, **kwargs)

def normed():
    "A classifier with a batch norm and a dropout-free layer in its head too"
    return nn.Sequential(body(), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, 4)))

def norms(m): return [o for o in m.modules() if isinstance(o, nn.modules.batchnorm._BatchNorm)]
def running(m): return torch.cat([t for o in norms(m) for t in (o.running_mean,o.running_var)]).clone()

def kl_by_hand(zs, zw, temp, threshold):
    p,q,tot = zs.softmax(1),zw.softmax(1).detach(),0.
    for a,b in zip(p, q):
        if b.max()>threshold:
            t = b**(1/temp)/(b**(1/temp)).sum()
            tot = tot + (t*(t/a).log()).sum()
    return tot/len(p)

def mse_by_hand(zs, zw, temp, threshold): return ((zs.softmax(1)-zw.softmax(1).detach())**2).mean()

# Against a loop written by hand

@pytest.mark.parametrize('loss,temp,threshold,hand', [('kl',.4,.3,kl_by_hand), ('kl',1.,0.,kl_by_hand), ('mse',1.,0.,mse_by_hand)])
@pytest.mark.parametrize('with_dl', [False,True])
def test_the_same_weights_as_a_loop_written_by_hand(loss, temp, threshold, hand, with_dl):
    dls,other = make_dls(n=20),make_dls(n=16, bs=6, labelled=False).train
    cb = cons(.5, loss=loss, temp=temp, threshold=threshold, dl=other if with_dl else None)
    learn = make_learn(cb, dls, (set_seed(7), normed())[1], opt_func=partial(SGD, mom=.9), wd=0.)
    fit(learn, 2, 'fit', .1)
    set_seed(7)
    m = normed().train()
    opt = torch.optim.SGD(m.parameters(), lr=.1, momentum=.9)
    batches = [(x.as_subclass(Tensor),y.as_subclass(Tensor)) for x,y in dls.train]*2
    us = [b[0].as_subclass(Tensor) for b in [*other]*2] if with_dl else [x for x,_ in batches]
    vals = []
    for (x,y),u in zip(batches, us, strict=True):
        task = F.cross_entropy(m(x), y)
        for o in norms(m): o.momentum = 0.
        strong,weak = still_views(u)
        term = hand(m(strong), m(weak), temp, threshold)
        for o in norms(m): o.momentum = .1
        opt.zero_grad()
        (task+.5*term).backward()
        opt.step()
        vals.append(term.item() if isinstance(term, Tensor) else term)
    for (k,a),b in zip(learn.model.state_dict().items(), m.state_dict().values()):
        if 'num_batches' not in k: assert torch.allclose(a, b, atol=1e-5), k
    assert np.allclose(cb.history.loss, vals, atol=1e-5) and max(vals)>1e-4
    assert len(set(np.round(vals, 6)))>3

def test_columns_by_hand():
    cb = cons(threshold=.27)
    learn = fit(make_learn(cb, make_dls(n=20), pooled(plain_body())), 1, 'fit', 0.)
    s,w = [],[]
    for x,_ in learn.dls.train:
        with torch.no_grad():
            for o,l in zip(still_views(x.as_subclass(Tensor)), (s,w)): l += [*learn.model(o).softmax(1)]
    sure = np.mean([(o.max()>.27).item() for o in w])
    same = np.mean([(a.argmax()==b.argmax()).item() for a,b in zip(s, w)])
    assert learn.recorder.metric_names[4:]==['consistency_loss','consistency_confident','consistency_agreement','time']
    assert np.isclose(col(learn, 'consistency_confident'), sure) and np.isclose(col(learn, 'consistency_agreement'), same)

# What moves, and what stays

def test_the_gradient_reaches_encoder_and_head():
    res = [ws(fit(make_learn(cons(w), model=(set_seed(7), normed())[1], opt_func=SGD), 1, 'fit', .1).model[i]) for w in (0.,1.) for i in (0,1)]
    for a,b in zip(res[:2], res[2:]): assert not torch.allclose(a, b, atol=1e-5)

def test_no_gradient_through_the_target():
    z,w = torch.randn(3,5,requires_grad=True),torch.randn(3,5,requires_grad=True)
    for loss in ('kl','mse'): consistency_loss(z, w, loss).backward()
    consistency_loss(z, w, kind='numbers').backward()
    assert w.grad is None and z.grad.abs().sum()>0

@pytest.mark.parametrize('update_bn', [False,True])
def test_running_statistics(update_bn):
    "At lr 0 the running statistics are those of a fit without the term, those of the head included"
    a = fit(make_learn(model=(set_seed(7), normed())[1]), 2, 'fit', 0.)
    b = fit(make_learn(cons(update_bn=update_bn), model=(set_seed(7), normed())[1]), 2, 'fit', 0.)
    for i in (0,1): assert torch.equal(running(a.model[i]), running(b.model[i]))!=update_bn

def test_the_model_is_in_training_mode_and_hooks_see_nothing():
    modes = []
    learn = make_learn(cons(), model=normed())
    learn.model[1].register_forward_hook(lambda m, i, o: modes.append((m.training, torch.is_grad_enabled(), len(o))))
    seen = []
    class Spy(Callback):
        def before_fit(self): self.h = hook_output(self.model[1], detach=True)
        def after_batch(self):
            if self.training: seen.append(self.h.stored)
        def after_fit(self): self.h.remove()
    n = []
    class Preds(Callback):
        def after_pred(self):
            if self.training: n.append(self.learn.pred.detach().clone())
    fit(learn, 1, cbs=[Spy(), Preds()])
    assert modes[0]==(False,False,1) # the look at one image
    assert [o for o in modes[1:] if o[0]][:3]==[(True,True,8),(True,False,8),(True,True,8)] # labels, weak, strong
    assert all(torch.equal(a, b) for a,b in zip(seen, n, strict=True))

def test_weight_0_is_bit_identical():
    res = []
    for cbs in (None, cons(0., views=None), PretextTerm(Consistency(), 0., dl=make_dls(n=40, labelled=False).train)):
        m = (set_seed(7), normed())[1]
        m[1].append(nn.Dropout(.3))
        learn = fit(make_learn(cbs, model=m), 2, 'fit_one_cycle', 1e-2)
        res.append((ws(learn.model), torch.get_rng_state(), list(learn.recorder.values[-1])[:3]))
    for o in res[1:]: assert torch.equal(o[0], res[0][0]) and torch.equal(o[1], res[0][1]) and o[2]==res[0][2]

def test_mixup_leaves_the_images_clean():
    seen,dls = [],make_dls()
    learn = fit(make_learn(cons(views=lambda x: (seen.append(x.clone()), still_views(x))[1]), dls), cbs=MixUp())
    assert learn.consistency.task.kind=='classes'
    assert all(torch.equal(a, b[0].as_subclass(Tensor)) for a,b in zip(seen, dls.train, strict=True))

# Beside what it can be

def test_with_other_terms_and_a_second_loader():
    many = make_dls(n=40, labelled=False).train
    cbs = [cons(views=None, dl=many, threshold=0.), PretextTerm('rotation', .5, dl=many), term(name='simclr')]
    learn = fit(make_learn(cbs), 2)
    assert np.isfinite(learn.recorder.values[-1]).all()
    assert learn.recorder.metric_names[4:]==['consistency_loss','consistency_confident','consistency_agreement',*col_names(*cbs[1:]),'time']
    c = deepcopy(learn)
    assert c.consistency.task is not cbs[0].task and c.consistency.task.metrics[0].__self__ is c.consistency.task
    fit(learn), fit(c)
    assert torch.equal(ws(learn.model), ws(c.model))
    sd = cbs[0].state_dict()
    cons().load_state_dict(sd)
    with pytest.raises(ValueError, match="state of 'consistency'"): PretextTerm('rotation').load_state_dict(sd)

@pytest.mark.parametrize('weight', ['balanced', SchedCos(0., 1.)])
def test_weights(weight):
    cb = cons(weight, views=None, threshold=0.)
    fit(make_learn(cb), 2)
    assert (cb.history.weight!=1).any() and np.isfinite(cb.history.loss).all()

def test_beside_rotation_the_images_are_as_they_are():
    seen,dls = [],make_dls(labelled=False)
    cb = cons(views=lambda x: (seen.append(x.clone()), still_views(x))[1], threshold=0.)
    learn = pretext_learner(dls, body(), Rotation(), cbs=cb)
    fit(learn)
    assert cb.task.kind=='classes' and not cb.task.maps and np.isfinite(learn.recorder.values[-1]).all()
    assert all(torch.equal(a, b[0].as_subclass(Tensor)) for a,b in zip(seen, dls.train, strict=True))

def test_beside_inpainting_the_two_views_show_the_same_places():
    plain = Views(brightness=0., contrast=0., saturation=0., hue=0., p_grey=0., p_blur=0., scale=(.2,.3))
    cb = cons(views=None, task_kw=dict(strong=plain))
    learn = pretext_learner(make_dls(labelled=False), body(), Inpainting(grid=4), cbs=cb)
    fit(learn)
    assert cb.task.kind=='numbers' and cb.task.maps and col(learn, 'consistency_loss')<1e-8
    assert np.isnan(col(learn, 'consistency_confident')) and np.isnan(col(learn, 'consistency_agreement'))
    x = images(4)[0]
    assert torch.allclose(*cb.task.make(x), atol=1e-5)
    cb = cons(views=None)
    learn = fit(pretext_learner(make_dls(labelled=False), body(), Inpainting(grid=4), cbs=cb))
    assert col(learn, 'consistency_loss')>1e-6
    with quietly(learn): cb.task.show_answers(learn)

def test_beside_a_segmentation():
    "Classes along the first axis of a map"
    m = nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()), nn.Sequential(nn.Conv2d(8, 5, 1)))
    ds = [(TensorImage(x), TensorMask(torch.full((16,16), int(y)))) for x,y in zip(*images(16))]
    dls = DataLoaders.from_dsets(ds, ds, bs=8, device='cpu', num_workers=0)
    cb = PretextTerm(Consistency('mse', 1., 0.))
    learn = Learner(dls, m, loss_func=CrossEntropyLossFlat(axis=1), cbs=cb)
    fit(learn, 1, 'fit', 0.)
    assert cb.task.maps and cb.task.kind=='classes' and cb.task.axis==1 and col(learn, 'consistency_confident')==1
    a,b = torch.randn(2,2,5,4,4).unbind(0)
    assert torch.isclose(cb.task.loss_func(a, b), ((a.softmax(1)-b.softmax(1))**2).mean())

def test_several_labels_and_numbers():
    a,b = torch.randn(2,6,4).unbind(0)
    p,q = a.sigmoid(),b.sigmoid()
    want = (q*(q/p).log()+(1-q)*((1-q)/(1-p)).log()).mean()
    assert torch.isclose(consistency_loss(a, b, kind='labels'), want, atol=1e-5)
    assert torch.isclose(consistency_loss(a, b, 'mse', kind='labels'), ((p-q)**2).mean(), atol=1e-6)
    sure = torch.maximum(q, 1-q)>.7
    assert torch.isclose(consistency_loss(a, b, 'mse', threshold=.7, kind='labels'), (((p-q)**2)*sure).mean(), atol=1e-6)
    assert torch.isclose(consistency_loss(a, b, 'kl', .4, .9, 'numbers'), ((a-b)**2).mean())
    for y,loss,kind in ((torch.ones(4), BCEWithLogitsLossFlat(), 'labels'), (torch.rand(4), MSELossFlat(), 'numbers')):
        ds = [(TensorImage(x), y) for x in images(16)[0]]
        cb = PretextTerm(Consistency(threshold=0.))
        learn = fit(Learner(DataLoaders.from_dsets(ds, ds, bs=8, device='cpu', num_workers=0), pooled(), loss_func=loss, cbs=cb))
        assert cb.task.kind==kind and np.isfinite(col(learn, 'consistency_loss'))
        cb.task.show_answers(learn)

# Beside what it cannot

def test_alone_it_is_refused():
    "Before anything is trained"
    msg = 'a model that always says the same would be perfectly consistent'
    with pytest.raises(ValueError, match=msg): pretext_learner(make_dls(labelled=False), body(), 'consistency')
    enc = create_encoder(body())
    learn = Learner(make_dls(labelled=False), ViewsOnly(enc), loss_func=TermOnly(), cbs=cons())
    was = ws(enc)
    with pytest.raises(ValueError, match=msg): fit(learn)
    assert torch.equal(was, ws(enc))
    with pytest.raises(ValueError, match=msg): fit(contrastive_learner(make_dls(labelled=False), body(), SimCLR(dim=8), cbs=cons()))

def test_models_that_want_more_than_an_image():
    class Halves(PretextTask):
        loss_func = CrossEntropyLossFlat()
        def make(self, x): return torch.stack([x,x], 1),torch.zeros(len(x)).long()
        def head(self, enc): return nn.Sequential(nn.Flatten(), nn.Linear(2*enc.nf, 2))
    del PretextTask.registry['halves']
    learn = pretext_learner(make_dls(labelled=False), body(), Halves(), cbs=cons())
    with pytest.raises(ValueError, match='single images.*leave the term out'): fit(learn)
    learn.remove_cb(learn.consistency)
    fit(learn)

@pytest.mark.parametrize('kw,match', [(dict(loss='ce'), "'kl' or 'mse'"), (dict(temp=0), 'temp'), (dict(threshold=1), 'threshold'), (dict(threshold=-.1), 'threshold')])
def test_bad_settings(kw, match):
    with pytest.raises(ValueError, match=match): Consistency(**kw)

# To be seen

def test_pictures():
    learn = fit(make_learn(cons(views=None), make_dls()))
    learn.consistency.task.show_answers(learn, max_n=3)
    axs = plt.gcf().axes
    assert len(axs)==6 and len(axs[0].get_title().split('\n'))==2
    x = images(4)[0]
    learn.consistency.task.show(*learn.consistency.task.make(x), pred=torch.rand(4,4))
    assert len(plt.gcf().axes)==8

def test_views_are_of_the_images_as_they_are_normalised():
    norm = Normalize.from_stats(*imagenet_stats, cuda=False)
    cb = cons(views=None)
    learn = fit(make_learn(cb, make_dls(after_batch=[norm])))
    weak,strong = cb.task._views()
    assert np.allclose(weak.mean, imagenet_stats[0]) and np.allclose(strong.std, imagenet_stats[1])
    p = cb.task.pixels(torch.cat(cb.task.make(learn.dls.one_batch()[0].as_subclass(Tensor))))
    assert p.min()>-1e-4 and p.max()<1+1e-4
