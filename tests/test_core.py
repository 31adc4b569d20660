"What a term promises a `Learner`, contrastive or a pretext task's: the nine behaviours, columns, state, bad input"
import itertools, textwrap
import forked, pytest
import matplotlib
matplotlib.use('Agg')
from utils import *
from fastai.callback.channelslast import ChannelsLast
from fastai.callback.mixup import CutMix, MixUp
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.interpret import Interpretation
from contextlib import nullcontext
from fastai_contrastive.stats import *
from fastai_contrastive.term import *
from fastai_contrastive.views import *

# Every test runs over both kinds of term, but for these. Why not:
only_contrastive = dict(
    test_frozen_stats_puts_back_what_was_on='no term',
    test_hooks_are_put_back='no term',
    test_a_second_loader_gives_no_labels_and_may_be_torchs='labels: no task is given any',
    test_second_loaders_that_cannot_be='labels and row numbers: no task asks for any',
    test_a_data_set_that_has_normalised_its_images='views have to know pixels, questions do not',
    test_a_teachers_objective_follows_one_encoder='teachers',
    test_which_images_they_are_whoever_else_asks_the_loader='row numbers: no task asks for any',
    test_repr='its arguments; those of the other kind stand in test_pretext_term',
    test_learners_take_the_channels_of_the_images='learners that make the term themselves',
    test_views_of_a_size_that_the_encoder_cannot_take='views of two sizes; another loader of another size in test_pretext_term',
    test_objectives_by_name_and_instance='objectives',
    test_views_of_one_size_share_a_pass='objectives',
    test_bad_objectives_are_named='objectives',
    test_finetune_learner_is_plain_fastai='no term',
    test_finetune_metrics_follow_the_labels='no term',
    test_an_encoder_with_statistics_meets_loaders_with_others='no term',
    test_finetuning_warns_of_another_normalisation='no term',
)

def grid(**axes):
    "All combinations for the first kind; for the second, for whom the machinery is the same, each value at least once"
    def _f(f):
        f.axes = axes
        return f
    return _f

def pytest_generate_tests(metafunc):
    axes = {k:list(v) for k,v in getattr(metafunc.function, 'axes', {}).items()}
    rows = {kinds[0]:list(itertools.product(*axes.values()))}
    if metafunc.function.__name__ not in only_contrastive:
        n = max(map(len, axes.values()), default=1)
        rows[kinds[1]] = list(zip(*[[v[i%len(v)] for i in range(n)] for v in axes.values()])) or [()]
        if list(axes)==['opt']: rows[kinds[1]] = [(o,) for o in few_opts]
    metafunc.parametrize(['kind',*axes], [(k,*o) for k,v in rows.items() for o in v], indirect=['kind'])

@pytest.fixture(autouse=True)
def kind(request):
    "Which kind of term `term` makes"
    the.kind = request.param
    yield request.param
    the.kind = kinds[0]

def test_the_exceptions_are_tests(): assert not [o for o in only_contrastive if o not in globals()]

pytestmark = pytest.mark.usefixtures('strict')

opts = dict(adam=Adam, sgd=partial(SGD, mom=.9), ranger=partial(ranger, k=2), adamw=partial(OptimWrapper, opt=torch.optim.AdamW),
    torch_sgd=partial(OptimWrapper, opt=torch.optim.SGD, momentum=.9))
few_opts = 'ranger','adamw' # With slow weights to lend, and with state of another form
each_opt = grid(opt=opts)

def state_of(opt):
    "What an optimizer holds for each parameter, and its hyperparameters, as plain values"
    inner = opt.opt if isinstance(opt, (Lookahead,OptimWrapper)) else opt
    return [[{k:o.clone() if isinstance(o, Tensor) else o for k,o in inner.state.get(p, {}).items()} for p in g] for g in opt.param_lists],\
        [dict(h) for h in opt.hypers]

def same(a, b):
    if isinstance(a, Tensor): return torch.equal(a, b)
    if isinstance(a, dict): return a.keys()==b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list,tuple,L)): return len(a)==len(b) and all(map(same, a, b))
    return a==b

def check_clean(learn):
    "Nothing of the callback is left in the learner"
    ps = list(learn.splitter(learn.model))
    if isinstance(ps[0], Tensor): ps = [ps]
    assert [len(g) for g in learn.opt.param_lists]==[len(g) for g in ps]
    own = {id(p) for p in learn.model.parameters()}
    assert {i for g in opt_ids(learn.opt) for i in g}==own
    inner = learn.opt.opt if isinstance(learn.opt, (Lookahead,OptimWrapper)) else learn.opt
    assert {id(p) for p in inner.state} <= own
    slow = getattr(learn.opt, 'slow_weights', None)
    if slow is not None: assert [len(g) for g in slow]==[len(g) for g in ps]
    assert [m.name for m in learn.metrics]==['accuracy'] and type(learn.model) is nn.Sequential and isinstance(learn.loss_func, CrossEntropyLossFlat)
    assert not {'_do_epoch','parameters'} & set(learn.__dict__)

# 1. Heads train

hows = dict(fit=lambda l,**kw: l.fit(1, 1e-2, **kw), one_cycle=lambda l,**kw: l.fit_one_cycle(1, slice(1e-3,1e-2), **kw),
    flat_cos=lambda l,**kw: l.fit_flat_cos(1, 1e-2, **kw), fine_tune=lambda l,**kw: l.fine_tune(1, 1e-2, **kw))

@grid(how=hows, opt=opts)
def test_heads_train(how, opt):
    cb = term(ready=True, norms=True)
    learn = make_learn(cb, splitter=two_groups, opt_func=opts[opt])
    was,model = head_ws(cb),ws(learn.model)
    with quietly(learn): hows[how](learn)
    now = head_ws(cb)
    assert not torch.equal(was, now) and not torch.equal(model, ws(learn.model)) and now.isfinite().all()
    assert all(len(cb.loan.state[p])>0 for p in cb.heads)
    check_clean(learn)

@pytest.mark.parametrize('join', ['init','add_cb','fit'])
def test_heads_train_however_the_callback_joins(join):
    "... and to the same weights"
    res = []
    for how in ('init', join):
        set_seed(1)
        cb = term(ready=True)
        learn = make_learn(cb if how=='init' else None)
        if how=='add_cb': learn.add_cb(cb)
        fit(learn, 2, cbs=cb if how=='fit' else None)
        res.append((head_ws(cb), ws(learn.model)))
        check_clean(learn)
    assert same(*res)

@each_opt
def test_heads_move_by_the_last_groups_lr(opt):
    "With lr 0 in the last group they stand still, whatever the first group does"
    for lr,moves in (([1e-2,0.], False), ([0.,1e-2], True)):
        cb = term(ready=True)
        learn = make_learn(cb, splitter=two_groups, opt_func=opts[opt])
        was,body_was = head_ws(cb),params(learn.model[0])[0].detach().clone()
        fit(learn, 1, 'fit', lr)
        assert torch.equal(was, head_ws(cb))!=moves
        assert torch.equal(body_was, params(learn.model[0])[0])==moves

def test_heads_step_is_lr_times_gradient():
    cb,seen = term(ready=True),[]
    def _look(learn): seen.append([(p.detach().clone(), p.grad.clone()) for p in cb.heads])
    learn = make_learn([cb, At('before_step', _look), At('after_batch', throw(CancelFitException()))], splitter=two_groups, opt_func=SGD)
    fit(learn, 1, 'fit', [.5,.02])
    assert len(seen)==1
    for p,(was,g) in zip(cb.heads, seen[0]): assert torch.allclose(p, was-.02*g, atol=1e-7) and g.abs().sum()>0

class Nothing(Objective):
    "Head with a gradient of zero: what moves it is decay"
    def build(self, nf): self.projector = nn.Sequential(nn.Linear(nf, 4), nn.BatchNorm1d(4))
    def loss(self, z, t, y): return 0*z[0].sum()
del Objective.registry['nothing']

class Nought(Rotation):
    "As `Nothing`, a task"
    metrics,loss_func = [],lambda pred, y: 0*pred.sum()
    def head(self, encoder): return nn.Sequential(nn.Linear(encoder.nf, 4), nn.BatchNorm1d(4))
del PretextTask.registry['nought']

@pytest.mark.parametrize('wd_bn_bias', [False,True])
@pytest.mark.parametrize('opt', ['adam','ranger'])
def test_no_decay_on_norms_and_biases(opt, wd_bn_bias):
    cb = with_head(PretextTerm(Nought())) if is_pretext() else term(objective=built(Nothing()))
    for p in cb.heads: nn.init.constant_(p, 2.)
    learn = make_learn(cb, opt_func=opts[opt], wd=.5, wd_bn_bias=wd_bn_bias)
    fit(learn, 1, 'fit', .1)
    lin,bn = cb.module['head'] if is_pretext() else cb.objective.projector
    assert (lin.weight<1.95).all()
    assert all(((p<1.95) if wd_bn_bias else p==2).all() for p in (lin.bias, bn.weight, bn.bias))

# 2. lr_find

@each_opt
def test_lr_find_puts_everything_back(opt):
    cb = term(ready=True, norms=True)
    learn = fit(make_learn(cb, opt_func=opts[opt]))
    def _all(): return [o.clone() for o in learn.model.state_dict().values()],{k:o.clone() for k,o in cb.module.state_dict().items()},\
        cb.loan.state_dict(cb.heads),state_of(learn.opt)
    was = deepcopy(_all())
    with quietly(learn): learn.lr_find(num_it=8, suggest_funcs=None, show_plot=False)
    assert len(learn.recorder.lrs)>5
    assert same(was, _all())
    check_clean(learn)

@each_opt
def test_lr_find_as_the_first_fit_ever(opt):
    "What follows is what would have been without it"
    res = []
    for find in (False,True):
        cb = term(seeded=True, norms=True)
        learn = make_learn(cb, opt_func=opts[opt])
        if find:
            with quietly(learn): learn.lr_find(num_it=8, suggest_funcs=None, show_plot=False)
            assert same(dict(cb.module.state_dict()), dict(term(seeded=True, ready=True, norms=True).module.state_dict()))
            check_clean(learn)
        fit(learn)
        res.append((ws(learn.model), head_ws(cb), cb.loan.state_dict(cb.heads)))
    assert same(*res)

# 3. Nothing is left behind

stops = dict(ctrl_c=KeyboardInterrupt, error=RuntimeError, cancel_fit=CancelFitException, cancel_epoch=CancelEpochException,
    cancel_train=CancelTrainException, cancel_batch=CancelBatchException)

@each_opt
def test_after_a_fit_the_learner_is_plain(opt):
    learn = fit(make_learn(term(), opt_func=opts[opt]))
    plain = fit(make_learn(opt_func=opts[opt]))
    check_clean(learn)
    assert set(learn.__dict__)-{term_of(learn).name}==set(plain.__dict__)
    learn.remove_cb(term_of(learn))
    assert set(learn.__dict__)==set(plain.__dict__)

@grid(stop=stops, event=['after_backward','before_step','after_step','before_batch'], how=['attached','fit'])
def test_whatever_ends_a_step_the_learner_is_plain(stop, event, how):
    cb = term(ready=True)
    learn = make_learn(cb if how=='attached' else None)
    cbs = [At(event, throw(stops[stop]('stop')), n=1)] + ([cb] if how=='fit' else [])
    try: fit(learn, cbs=cbs)
    except (KeyboardInterrupt,RuntimeError): assert stop in ('ctrl_c','error')
    check_clean(learn)
    if how=='fit': assert not hasattr(learn, cb.name)
    was = head_ws(cb)
    fit(learn, cbs=cb if how=='fit' else None)
    assert not torch.equal(was, head_ws(cb))
    check_clean(learn)

@pytest.mark.parametrize('stop', ['cancel_epoch','cancel_train'])
def test_a_cancelled_epoch_saves_a_plain_checkpoint(stop):
    "The step was cut off with the heads on loan; what is saved at the end of the epoch must not have them"
    learn = make_learn(term())
    fit(learn, cbs=[At('after_backward', throw(stops[stop]('stop')), n=1), At('after_epoch', lambda l: (check_opt(l), l.save('cut')), order=61)])
    make_learn().load('cut', with_opt=True, weights_only=False)

def check_opt(l): assert {i for g in opt_ids(l.opt) for i in g}=={id(p) for p in l.model.parameters()}

def test_an_interrupted_fit_with_two_terms_is_tidied_for_both():
    learn = make_learn(cbs:=[term(name='a'), term(name='b')])
    with pytest.raises(KeyboardInterrupt): fit(learn, cbs=At('before_step', throw(KeyboardInterrupt()), n=1))
    check_clean(learn)
    fit(learn)
    assert learn.recorder.metric_names[4:]==[*col_names(*cbs), 'time']

def test_removal_between_fits():
    cb = term()
    learn = fit(make_learn(cb))
    learn.remove_cb(cb)
    plain = make_learn()
    plain.model.load_state_dict(learn.model.state_dict())
    plain.create_opt()
    plain.opt.load_state_dict(deepcopy(learn.opt.state_dict()))
    assert torch.equal(ws(fit(learn).model), ws(fit(plain).model))

# 4. Files

@each_opt
def test_checkpoints_interchange_with_a_plain_learner(opt):
    mk = partial(make_learn, opt_func=opts[opt], splitter=two_groups, path=Path.cwd())
    learn,plain = fit(mk(term())),mk()
    learn.save('with')
    plain.load('with', with_opt=True, weights_only=False)
    assert same(state_of(plain.opt), state_of(learn.opt)) and torch.equal(ws(plain.model), ws(learn.model))
    fit(plain).save('without')
    learn.load('without', with_opt=True, weights_only=False)
    assert same(state_of(plain.opt), state_of(learn.opt)) and torch.equal(ws(plain.model), ws(learn.model))
    was = head_ws(term_of(learn))
    fit(learn)
    assert not torch.equal(was, head_ws(term_of(learn)))

def test_save_model_callback_with_opt():
    learn = make_learn(term(), path=Path.cwd())
    fit(learn, 2, cbs=SaveModelCallback(with_opt=True, fname='best'))
    plain = make_learn(path=Path.cwd()).load('best', with_opt=True, weights_only=False)
    assert torch.equal(ws(plain.model), ws(learn.model))
    fit(plain, cbs=SaveModelCallback(with_opt=True, fname='plain'))
    fit(learn.load('plain', with_opt=True, weights_only=False))

@pytest.fixture(scope='module')
def files(tmp_path_factory):
    p = tmp_path_factory.mktemp('images')
    for i,(x,y) in enumerate(zip(*images(32, 20))):
        (p/f'{y}').mkdir(exist_ok=True)
        Image.fromarray((x.permute(1,2,0).numpy()*255).astype('uint8')).save(p/f'{y}'/f'{i}.png')
    return p

def vision(files, cbs=None, model=None):
    "A learner on real files with fastai's parts only"
    set_seed(0)
    dls = ImageDataLoaders.from_folder(files, valid_pct=.25, seed=0, item_tfms=Resize(16), batch_tfms=[Flip(), Normalize.from_stats(*imagenet_stats)],
        bs=8, num_workers=0, device='cpu')
    m = nn.Sequential(plain_body(), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12,4)))
    return Learner(dls, ifnone(model, m), metrics=accuracy, cbs=cbs, path=Path.cwd())

def test_export_opens_without_the_package(files):
    learn = fit(vision(files, own_term()))
    learn.add_cb(At('after_epoch', lambda l: None)).remove_cb(At)
    img = files/'1'/'1.png'
    with quietly(learn): want = learn.predict(img)[2]
    learn.export('e.pkl')
    code = f"""
        import sys, warnings
        warnings.simplefilter('ignore')
        sys.modules['fastai_contrastive'] = None
        from fastai.vision.all import *
        learn = load_learner('e.pkl')
        with learn.no_bar(): print(*learn.predict({str(img)!r})[2].tolist())
        assert not [o for o in sys.modules if o.startswith('fastai_contrastive.')]
    """
    r = forked.code(textwrap.dedent(code))
    assert r.returncode==0, r.stderr
    assert torch.allclose(tensor([float(o) for o in r.stdout.split()[-4:]]), want, atol=1e-6)
    fit(learn)

def test_a_term_alone_exports_without_the_package(files):
    dls = vision(files).dls
    learn = fit(alone(dls, 'xresnet18', views=None, path=Path.cwd()))
    with quietly(learn): want = learn.get_preds(dl=dls.test_dl([files/'1'/'1.png']))[0]
    learn.export('e.pkl')
    code = f"""
        import sys
        sys.modules['fastai_contrastive'] = None
        from fastai.vision.all import *
        learn = load_learner('e.pkl')
        with learn.no_bar(): print(*learn.get_preds(dl=learn.dls.test_dl([{str(files/'1'/'1.png')!r}]))[0][0].tolist())
    """
    r = forked.code(textwrap.dedent(code))
    assert r.returncode==0, r.stderr
    assert torch.allclose(tensor([float(o) for o in r.stdout.split()]), want[0], atol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        again = load_learner('e.pkl')
    assert isinstance(again.model, type(learn.model)) and isinstance(again.loss_func, TermOnly)

def test_pickled_in_the_middle_of_a_fit_it_is_fastais():
    learn = make_learn(term())
    fit(learn, cbs=At('after_train', lambda l: l.dls and setattr(l, 'copies', [pickle.loads(pickle.dumps(o)) for o in (term_of(l), *l.metrics[1:])])))
    cb,*cols = learn.copies
    assert type(cb) is Callback and [o.name for o in cols]==col_names(term_of(learn))
    assert all(type(o) is ValueMetric and o.value is None for o in cols)

# 5. Everything but training

@pytest.fixture
def twins(files, kind):
    learn = fit(vision(files, own_term()))
    plain = vision(files)
    plain.model.load_state_dict(learn.model.state_dict())
    return learn,plain

def titles(): return [ax.get_title() for ax in plt.gcf().axes]

def show(l):
    l.show_results(max_n=4, shuffle=False)
    return titles()

def worst(l):
    i = Interpretation.from_learner(l)
    i.plot_top_losses(3)
    return [o.tolist() for o in i.top_losses(3)]+[titles()]

asks = dict(validate=lambda l,f: list(l.validate()), get_preds=lambda l,f: l.get_preds(), train_preds=lambda l,f: l.get_preds(0, with_loss=True),
    predict=lambda l,f: list(l.predict(f/'2'/'2.png')), tta=lambda l,f: l.tta(n=2), show_results=lambda l,f: show(l), interpret=lambda l,f: worst(l))

@pytest.mark.parametrize('ask', asks)
def test_everything_but_training_is_unchanged(twins, files, ask):
    res = []
    for l in twins:
        set_seed(4)
        with quietly(l): res.append((asks[ask](l, files), torch.get_rng_state()))
    assert same(*res)

@pytest.mark.parametrize('ask', ['validate','get_preds'])
def test_nested_in_a_fit_the_columns_stay(ask):
    names,vals = [],[]
    def _ask(l): names.append(list(l.recorder.metric_names)); vals.append(len(getattr(l, ask)())); names.append(list(l.recorder.metric_names))
    fit(make_learn(cb:=term()), 2, cbs=At('after_epoch', _ask))
    assert names==[['epoch','train_loss','valid_loss','accuracy',*col_names(cb),'time']]*2 and len(vals)==1

def test_validating_inside_a_fit_changes_no_weights():
    res = [ws(fit(make_learn(term(seeded=True, fixed=True)), 2, cbs=cbs).model) for cbs in (None, At('after_epoch', lambda l: l.validate()))]
    assert same(*res)

# 6. Other callbacks

@pytest.mark.parametrize('mix', [MixUp, CutMix])
def test_views_come_from_clean_images(mix):
    seen = []
    learn = make_learn(seeing(seen))
    fit(learn, cbs=mix(.9))
    assert same(seen, [b[0].as_subclass(Tensor) for b in learn.dls.train])

def turned(x):
    "Quarter turns as a `fixed` rotation draws them"
    k = same_draws(torch.randint)(4, (len(x),))
    return torch.stack([torch.rot90(o, int(i), (1,2)) for o,i in zip(x,k)]),k

def term_by_hand(body, cb, x):
    "The term, without anything of the callback's but its heads"
    if is_pretext():
        x,k = turned(x)
        return F.cross_entropy(cb.module['head'](body(x).mean((2,3))), k)
    return cb.objective.loss(cb.objective.projector(body(torch.cat(two_views(x))).mean((2,3))).chunk(2), None, None)

def by_hand(learn, cb, batches, w):
    "Weights after a step down the gradient of the mean of the batches' losses"
    loss = 0
    for x,y in batches:
        x,y = x.as_subclass(Tensor),y.as_subclass(Tensor)
        loss = loss + (F.cross_entropy(learn.model(x), y) + w*term_by_hand(learn.model[0], cb, x))/len(batches)
    ps = [*learn.model.parameters(), *cb.module.parameters()]
    return [p.detach()-.1*g for p,g in zip(ps, torch.autograd.grad(loss, ps))]

def test_gradient_accumulation_scales_the_term_like_the_loss():
    cb = term(.5, ready=True, fixed=True)
    learn = make_learn(cb, dls=make_dls(n=16), model=pooled(plain_body()), opt_func=SGD)
    want = by_hand(learn, cb, list(learn.dls.train), .5)
    fit(learn, 1, 'fit', .1, wd=0., cbs=GradientAccumulation(16))
    for p,o in zip([*learn.model.parameters(), *cb.heads], want): assert torch.allclose(p, o, atol=1e-6)

def test_a_step_whose_last_batch_is_passed_over_is_still_the_terms():
    "Accumulated: the heads step by what the other batches gave, and the teacher, where there is one, follows once"
    steps,cb = [],term(ready=True)
    o,k = (cb,'follow') if is_pretext() else (cb.objective,'after_step')
    setattr(o, k, lambda *args, f=getattr(o, k): (steps.append(head_ws(cb)), f(*args)))
    was = head_ws(cb)
    fit(make_learn(cb, dls=make_dls(n=9), model=pooled(plain_body()), opt_func=SGD), 1, 'fit', .1, cbs=GradientAccumulation(9))
    assert len(steps)==1 and not torch.equal(was, steps[0]) and all(p.grad is None or not p.grad.any() for p in cb.heads)

class Dtypes(SimCLR):
    seen = []
    def encode(self, encoder, views):
        res = super().encode(encoder, views)
        self.seen.append(res[0].dtype)
        return res
    def loss(self, z, t, y):
        self.seen += [z[0].dtype, (z[0]@z[1].T).dtype]
        return super().loss(z, t, y)
del Objective.registry['dtypes']

class DtypesAsked(Rotation):
    "As `Dtypes`, a task"
    def head(self, encoder):
        m = super().head(encoder)
        m.register_forward_pre_hook(lambda m, x: Dtypes.seen.append(x[0].dtype))
        return m
    def loss_func(self, pred, y):
        Dtypes.seen.extend([pred.dtype, (pred@pred.T).dtype])
        return F.cross_entropy(pred, y)
del PretextTask.registry['dtypes_asked']

def test_under_autocast_the_encoder_is_fast_and_the_loss_exact():
    Dtypes.seen.clear()
    learn = fit(make_learn(PretextTerm(DtypesAsked()) if is_pretext() else term(objective=Dtypes(dim=8))), cbs=CPUMixed())
    assert Dtypes.seen==[torch.bfloat16, torch.float32, torch.float32]*len(learn.dls.train)

def test_a_gradient_scaler_unscales_the_heads():
    res = []
    for cbs in (None, CPUMixed(torch.float32)):
        cb = term(seeded=True)
        learn = fit(make_learn(cb, opt_func=SGD), 1, 'fit', .1, cbs=cbs)
        res.append(torch.cat([ws(learn.model), head_ws(cb)]))
    assert torch.allclose(*res, atol=1e-5)

def all_grads(l, *cbs): return [p.grad.clone() for m in (l.model, *[c.module for c in cbs]) for p in m.parameters()]

def test_gradient_clip():
    "One norm over all that steps: the model and the heads of every term"
    res = []
    for clip in ([], [GradientClip(.1)]):
        set_seed(1)
        cbs = [term(100., ready=True), term(50., ready=True, name='again')]
        learn = make_learn(cbs)
        fit(learn, cbs=[*clip, At('before_step', lambda l: res.append(all_grads(l, *cbs)), order=50)])
        check_clean(learn)
    norm = nn.utils.get_total_norm(res[0])
    assert norm>1 and all(torch.allclose(b, a*.1/norm, rtol=1e-4, atol=1e-7) for a,b in zip(*res))

@pytest.mark.parametrize('e', [CancelBatchException,CancelTrainException,CancelEpochException,CancelFitException,KeyboardInterrupt])
def test_gradient_clip_leaves_nothing(e):
    learn = make_learn(term())
    try: fit(learn, cbs=[GradientClip(.1), At('before_step', throw(e()), order=12)])
    except KeyboardInterrupt: pass
    check_clean(learn)

def test_channels_last():
    formats = []
    learn = make_learn(term())
    learn.model[0].register_forward_pre_hook(lambda m,x: formats.append(x[0].is_contiguous(memory_format=torch.channels_last)) if m.training else None)
    fit(learn, cbs=[ChannelsLast(), At('before_batch', lambda l: setattr(l, 'xb', (l.xb[0].contiguous(memory_format=torch.channels_last),)), order=-9)])
    assert formats[:2]==[True,True] # the task's pass, then the term's

def test_compiled_model():
    cb = term(ready=True)
    plain = fit(make_learn(deepcopy(cb)))
    learn = make_learn(cb)
    m = learn.model
    learn.model = torch.compile(m, backend='eager')
    was = head_ws(cb)
    fit(learn)
    assert not torch.equal(was, head_ws(cb)) and torch.allclose(ws(m), ws(plain.model), atol=1e-5)

def test_frozen_encoder_stays_and_heads_train():
    cb = term(ready=True)
    learn = make_learn(cb, splitter=two_groups, train_bn=False)
    learn.freeze()
    was,heads = ws(nn.ModuleList([o for o in learn.model[0].modules() if isinstance(o, nn.Conv2d)])),head_ws(cb)
    def _convs(): return ws(nn.ModuleList([o for o in learn.model[0].modules() if isinstance(o, nn.Conv2d)]))
    fit(learn)
    assert torch.equal(was, _convs()) and not torch.equal(heads, head_ws(cb))
    learn.unfreeze()
    fit(learn)
    assert not torch.equal(was, _convs())

# 7. The task's model is left alone

@pytest.mark.parametrize('update_bn', [False,True])
def test_at_lr_0_only_asked_for_statistics_move(update_bn):
    learn,plain = [fit(make_learn(cbs), 1, 'fit', 0.) for cbs in (term(update_bn=update_bn), None)]
    assert torch.equal(bn_stats(learn.model), bn_stats(plain.model)) != update_bn
    if not update_bn: assert torch.equal(ws(learn.model), ws(plain.model))
    for l in (learn,plain): l.model.eval()
    if not update_bn:
        with quietly(learn), quietly(plain): assert same(learn.get_preds(), plain.get_preds())

def test_alone_the_statistics_follow_the_term():
    learn = alone()
    was = bn_stats(learn.model)
    fit(learn, 1, 'fit', 0.)
    assert not torch.equal(was, bn_stats(learn.model))

def test_frozen_stats_puts_back_what_was_on():
    m = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3, track_running_stats=False))
    with pytest.raises(RuntimeError), frozen_stats(m): raise RuntimeError
    assert [o.track_running_stats for o in m]==[True,False]

# 9. Unlabelled, small and weightless

def test_unlabelled_batches_train():
    learn = alone(make_dls(labelled=False), norms=True)
    was = ws(learn.model)
    fit(learn, 3, 'fit', 1e-2)
    assert not torch.equal(was, ws(learn.model)) and learn.recorder.values[-1][0]<learn.recorder.values[0][0]

def test_unlabelled_batches_train_beside_a_task():
    cb = term(ready=True, norms=True)
    set_seed(0)
    learn = pretext_learner(make_dls(labelled=False), body(), Rotation(), cbs=cb)
    was = head_ws(cb)
    fit(learn)
    assert not torch.equal(was, head_ws(cb))

@pytest.mark.parametrize('is_alone', [False,True])
def test_a_last_batch_of_one_is_passed_over(is_alone):
    dls = make_dls(n=17, n_valid=9)
    seen = []
    cb = seeing(seen)
    if is_alone: learn = Learner(dls, ViewsOnly(create_encoder(plain_body())), loss_func=TermOnly(), cbs=cb)
    else: learn = make_learn(cb, dls=dls, model=pooled(plain_body()))
    fit(learn)
    sizes = [len(o) for o in seen]
    assert sizes==[8,8]+[8]*is_alone
    assert len(learn.recorder.losses)==(2 if is_alone else 3) and np.isfinite(learn.recorder.values[-1]).all()

def test_weight_0_is_no_callback_at_all():
    def _states(): return torch.get_rng_state(),np.random.get_state()[1].tolist(),random.getstate()
    model = lambda: pooled(nn.Sequential(ConvLayer(3, 8, stride=2), nn.Dropout(.3), ConvLayer(8, 12, stride=2)))
    res = []
    for cbs in (None, own_term(0), own_term(lambda p: 0.)):
        set_seed(7)
        learn = fit(make_learn(cbs, dls=make_dls(shuffle=True), model=model()), 2)
        res.append((ws(learn.model), _states(), learn.recorder.losses[-1].clone(), [o[:3] for o in learn.recorder.values], state_of(learn.opt)))
    assert same(res[0], res[1]) and same(res[0], res[2])

# Columns

def test_losses_stay_the_tasks():
    seen,names = {},None
    for w in (0.,2.):
        learn = fit(make_learn(term(w)), 1, 'fit', 0.)
        seen[w],names = learn.recorder.values[-1],learn.recorder.metric_names
    assert same(list(seen[0.][:3]), list(seen[2.][:3]))
    assert names==['epoch','train_loss','valid_loss','accuracy',*col_names(term()),'time']
    assert np.isnan(seen[0.][3:]).all() and (np.array(seen[2.][3:])>0).all()

def test_the_column_is_the_mean_of_the_term_over_images():
    cb = term(ready=True)
    vals = spy(cb)
    learn = fit(make_learn(cb, dls=make_dls(n=20)), 2)
    want = [sum(v*n for v,n in zip(vals[i:i+3], (8,8,4)))/20 for i in (0,3)]
    assert np.allclose([col(learn, cb.column, i) for i in range(2)], [o.item() for o in want])

def test_alone_the_term_is_the_loss():
    learn = alone(views=None)
    vals = spy(term_of(learn))
    fit(learn)
    assert learn.recorder.metric_names==['epoch','train_loss','valid_loss',*col_names(term_of(learn))[1:],'time']
    assert np.allclose([float(o) for o in learn.recorder.losses], _smooth(vals[:3]), atol=1e-5)
    assert np.isclose(learn.recorder.values[-1][1], np.mean([vals[3].item()*8, vals[4].item()*4])/6)

def _smooth(vals, beta=.98):
    m,res = 0,[]
    for i,v in enumerate(vals):
        m = beta*m+(1-beta)*v.item()
        res.append(m/(1-beta**(i+1)))
    return res

def test_alone_validation_draws_the_same_each_time():
    learn = alone(views=None, ready=True)
    with quietly(learn):
        first = list(learn.validate())
        torch.randn(3)
        assert first==list(learn.validate()) and first[0]>0
        # PyTorch's loader draws a seed when it begins: nothing more is drawn
        set_seed(5)
        for _ in learn.dls.valid: pass
        rng = torch.get_rng_state()
        set_seed(5)
        learn.validate()
        assert torch.equal(rng, torch.get_rng_state())

def test_alone_predictions_are_features():
    learn = fit(alone())
    with quietly(learn): pred,y = learn.get_preds()
    x = torch.stack([o[0] for o in learn.dls.valid_ds]).as_subclass(Tensor)
    with torch.no_grad(): assert torch.allclose(pred, learn.model[0].eval()(x), atol=1e-5) and len(y)==12

@pytest.mark.parametrize('is_alone', [False,True])
def test_a_term_that_is_not_finite_stops_the_run(is_alone):
    learn = alone() if is_alone else make_learn(term())
    spy(cb:=term_of(learn), lambda l: l*(np.nan if cb.module.training else 1))
    fit(learn, 3, cbs=TerminateOnNaNCallback())
    assert len(learn.recorder.losses)<=1 and len(learn.recorder.values)==0

def test_train_metrics_show_the_column_once_filled():
    learn = make_learn(term())
    learn.recorder.train_metrics = True
    fit(learn)
    vals = dict(zip(learn.recorder.metric_names[1:], learn.recorder.values[-1]))
    assert all(vals[f'train_{o}']>0 and np.isnan(vals[f'valid_{o}']) for o in col_names(term_of(learn)))

# Weight, second loader, several terms

@pytest.mark.parametrize('w', [.5,3.])
def test_weight_multiplies_the_terms_gradient(w):
    cb = term(w, ready=True, fixed=True)
    learn = make_learn(cb, dls=make_dls(n=8), model=pooled(plain_body()), opt_func=SGD)
    want = by_hand(learn, cb, list(learn.dls.train), w)
    fit(learn, 1, 'fit', .1, wd=0.)
    for p,o in zip([*learn.model.parameters(), *cb.heads], want): assert torch.allclose(p, o, atol=1e-6)

def test_weight_schedule_follows_the_runs_share():
    ws_,grads = [],[]
    cb = term(SchedCos(0,1))
    fit(make_learn(cb), 2, cbs=At('after_batch', lambda l: None))
    learn = make_learn(cb:=term(SchedCos(0,1)))
    class See(Callback):
        order = -4
        def after_loss(self):
            if self.training: grads.append((self.learn.loss_grad-self.learn.loss).item()); ws_.append(self.pct_train)
    vals = spy(cb)
    fit(learn, 2, cbs=See())
    assert grads[0]==0 and len(vals)==5
    assert np.allclose(grads[1:], [(1-np.cos(np.pi*p))/2*v.item() for p,v in zip(ws_[1:], vals)], atol=1e-5)

@pytest.mark.parametrize('bad', [math.nan, math.inf, -.1])
def test_weight_schedule_that_gives_no_weight(bad):
    "As a constant would be: refused by name, not added to the loss"
    with pytest.raises(ValueError, match=f'the schedule of its weight gives {bad} at'): fit(make_learn(term(lambda p: 1. if p<.3 else bad)), 2)

def test_a_second_loader_feeds_the_term():
    "Unlabelled, of another batch size, and shorter: it starts again"
    extra,seen = make_dls(n=10, bs=5, labelled=False).valid.new(bs=6),[]
    learn = fit(make_learn(seeing(seen, dl=extra)))
    bs = [b[0].as_subclass(Tensor) for b in extra]
    assert same(seen, [bs[0],bs[1],bs[0]]) and [len(o) for o in seen]==[6,6,6]
    assert col(learn, term_of(learn).column)>0

def test_a_second_loader_gives_no_labels_and_may_be_torchs():
    class Ys(SimCLR):
        ys = []
        def loss(self, z, t, y): self.ys.append(y); return super().loss(z, t, y)
    fit(make_learn(term(objective=Ys(dim=8))))
    assert [len(y) for y in Ys.ys]==[8,8,8]
    Ys.ys.clear()
    dl = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*images(12)), batch_size=4)
    fit(make_learn(term(objective=Ys(dim=8), dl=dl)))
    assert Ys.ys==[None]*3
    del Objective.registry['ys']

def test_an_empty_second_loader_is_named():
    with pytest.raises(ValueError, match='`dl` is empty'): fit(make_learn(term(dl=[])))

def test_a_second_loader_that_can_be_gone_through_once_is_refused_before_training():
    learn = make_learn(term(dl=(images(4)[0] for _ in range(9))))
    was = ws(learn.model)
    with pytest.raises(ValueError, match='second loader `dl` is a generator, which can be gone through once'): fit(learn, 4)
    assert torch.equal(was, ws(learn.model))

def test_second_loaders_that_cannot_be():
    class Labels(SimCLR): needs_labels = True
    class Ids(SimCLR): needs_ids = True
    torchs = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*images(12)), batch_size=4)
    with pytest.raises(ValueError, match='labels needs labels, and dl= feeds the term images only'): fit(make_learn(term(objective=Labels(), dl=make_dls().train)))
    with pytest.raises(ValueError, match="ids needs to know which images .* got DataLoader"): fit(make_learn(term(objective=Ids(), dl=torchs)))
    for o in ('labels','ids'): del Objective.registry[o]

def test_dataloaders_as_second_loader():
    dls = make_dls(labelled=False)
    cb = term(dl=dls)
    assert cb.dl is dls.train and np.isfinite(fit(make_learn(cb)).recorder.values[-1]).all()

def norm(m, s): return [Normalize.from_stats([m]*3, [s]*3, cuda=False)]

class Sees(SimCLR):
    "What reaches the encoder"
    def forward(self, encoder, views, y=None):
        self.seen = [v.clone() for v in views]
        return super().forward(encoder, views, y)
del Objective.registry['sees']

@grid(stats=[((.5,.5),(.1,.2)), (None,(.1,.2)), ((.5,.5),None)], views=[None,two_views])
def test_two_normalisations_in_one_run(stats, views):
    "The term's images are brought to what the learner's have, and that is said"
    mk = lambda o: make_dls(after_batch=norm(*o) if o else None)
    (own,other),seen = stats,{}
    for o in (own,other):
        views_ = views and (lambda x: [x, x]) or Views(n=2, scale=None, p_flip=0, p_jitter=0, p_grey=0, p_blur=0)
        cb = seeing(given:=[], dl=mk(o)) if is_pretext() else term(views=views_, objective=Sees(dim=8), dl=mk(o))
        learn = make_learn(cb, mk(own))
        with (pytest.warns(UserWarning, match=f"{cb.name}'s second loader and the Learner are normalised in two ways.*brought to the latter")
              if o!=own else nullcontext()): fit(learn)
        seen[o] = given if is_pretext() else cb.objective.seen
        assert len(seen[o])
    assert all(torch.allclose(a, b, atol=1e-5) for a,b in zip(*seen.values()))

def torch_dl(n=16, f=noop, **kwargs):
    x,y = images(n)
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(f(x),y), **{'batch_size':8, **kwargs})

def test_torch_loaders():
    "As the learner's and as the second: in 0-1 as they are, else with views that are told; a question asks of any numbers"
    far = lambda x: (x-.5)/.1
    if is_pretext():
        for f in (noop,far):
            assert np.isfinite(fit(make_learn(term(), DataLoaders(torch_dl(f=f), torch_dl(8, f=f)))).recorder.values[-1]).all()
            assert np.isfinite(fit(make_learn(term(dl=torch_dl(f=f)))).recorder.values[-1]).all()
        return
    told = Views(mean=(.5,)*3, std=(.1,)*3)
    for f,views in ((noop,None), (noop,Views()), (far,told)):
        learn = make_learn(term(views=views), DataLoaders(torch_dl(f=f), torch_dl(8, f=f)))
        assert np.isfinite(fit(learn).recorder.values[-1]).all()
        assert np.isfinite(fit(make_learn(term(views=views, dl=torch_dl(f=f)))).recorder.values[-1]).all()
    for learn in (make_learn(term(views=None), DataLoaders(torch_dl(f=far), torch_dl(8, f=far))), make_learn(term(views=None, dl=torch_dl(f=far)))):
        with pytest.raises(ValueError, match=r'must be in 0-1.*add a Normalize to the dataloaders.*views=Views\(mean='): fit(learn)

def test_a_data_set_that_has_normalised_its_images():
    "fastai's loaders without Normalize, values beyond 0-1: told views make good views of them"
    ds = [((x-.5)/.1, y) for x,y in zip(*images(16))]
    dls = DataLoaders.from_dsets(ds, ds, bs=8, device='cpu', num_workers=0)
    with pytest.raises(ValueError, match='must be in 0-1'): fit(make_learn(term(views=None), dls))
    cb = term(views=Views(mean=(.5,)*3, std=(.1,)*3), objective=Sees(dim=8))
    fit(make_learn(cb, dls))
    assert cb.views.mean==(.5,)*3 and all(v.std()>.5 for v in cb.objective.seen)

# Nothing trained, nothing said

empties = dict(fastai=lambda: make_dls(n=5, bs=8, drop_last=True), torch=lambda: DataLoaders(torch_dl(5, drop_last=True), torch_dl(8)))

@pytest.mark.parametrize('loader', empties)
def test_a_training_loader_without_a_batch(loader):
    dls,msg = empties[loader](),'the training loader is empty: it has 5 images, bs=8, and drops a last batch'
    learn = make_learn(term(), dls)
    with pytest.raises(ValueError, match=msg): fit(learn)
    assert learn.opt is None or not hasattr(learn, 'smooth_loss')
    with pytest.raises(ValueError, match=msg): fit(alone(dls)) if is_pretext() else alone(dls)
    with pytest.raises(ValueError, match=msg): finetune_learner(dls, body(), n_out=4, loss_func=CrossEntropyLossFlat())
    with pytest.raises(ValueError, match='second loader `dl` is empty: it has 5 images'): fit(make_learn(term(dl=dls)))

def test_a_loader_without_a_length_is_taken_as_it_is():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self): return iter(images(12)[0])
    assert np.isfinite(fit(make_learn(term(dl=torch.utils.data.DataLoader(Stream(), batch_size=4)))).recorder.values[-1]).all()

# What monitors see

@pytest.mark.parametrize('cb', [SaveModelCallback, EarlyStoppingCallback, ReduceLROnPlateau])
def test_monitors_take_lower_as_better(cb):
    mon = cb(monitor=(t:=term()).column)
    fit(make_learn(t, path=Path.cwd()), 2, cbs=mon)
    assert mon.comp is np.less and np.isfinite(mon.best)

def test_a_column_without_a_number_is_nan():
    "For an epoch of weight 0: what compares numbers goes on"
    learn = make_learn(cb:=term(lambda p: float(p>=.5)), path=Path.cwd())
    fit(learn, 2, cbs=[SaveModelCallback(monitor=cb.column), EarlyStoppingCallback(monitor=cb.column, patience=5), CSVLogger()])
    for name in col_names(cb):
        vals = [col(learn, name, i) for i in range(2)]
        assert math.isnan(vals[0]) and vals[1]>0 and all(isinstance(o, float) for o in vals)
        assert pd.read_csv('history.csv')[name].isna().tolist()==[True,False]

def test_the_name_of_the_attribute_is_not_the_columns():
    learn = fit(make_learn(term(name='a')))
    assert learn.a.column=='a_loss' and learn.recorder.metric_names[4]=='a_loss'

# Somebody else's before_fit

class Raises(Callback):
    def __init__(self, order): self.order = order
    def before_fit(self):
        if not self.learn.lock.locked(): raise RuntimeError('no')

@grid(order=[-9,0,49,51,61,1000], how=['attached','fit'])
def test_a_before_fit_that_raises_leaves_nothing(order, how):
    learn = make_learn(term(ready=True) if how=='attached' else None)
    learn.create_opt()
    for kw in ({}, dict(cbs=None)):
        with pytest.raises(RuntimeError): fit(learn, cbs=[Raises(order)]+([term(ready=True)] if how=='fit' else []))
        check_clean(learn)
    with quietly(learn): assert len(learn.validate())==2
    fit(learn)
    check_clean(learn)

def test_a_misspelt_monitor_leaves_nothing():
    learn = make_learn(cb:=term())
    with pytest.raises(Exception): fit(learn, cbs=SaveModelCallback(monitor=cb.name))
    assert [m.name for m in learn.metrics]==['accuracy']

# One Learner, one name

def test_a_callback_in_two_learners():
    cb = term()
    first = make_learn(cb)
    with pytest.raises(ValueError, match=fr'in another Learner already.*make a new one, or call remove_cb\(learn.{cb.name}\)'): make_learn(cb)
    second = make_learn()
    with pytest.raises(ValueError, match='in another Learner already'): second.add_cb(cb)
    with pytest.raises(ValueError, match='in another Learner already'): fit(second, cbs=cb)
    assert cb.learn is first and not hasattr(second, cb.name) and len(second.cbs)==len(make_learn().cbs)
    first.remove_cb(cb)
    fit(second, cbs=cb)

def test_a_teachers_objective_follows_one_encoder():
    from fastai_contrastive.objectives.byol import BYOL
    obj = BYOL(dim=8, hidden=8)
    fit(first:=make_learn(term(objective=obj)))
    other = pooled()
    with pytest.raises(ValueError, match=r'another encoder.*new BYOL\(\)'): fit(make_learn(term(objective=obj), model=other))
    fit(make_learn(term(objective=obj), model=first.model)) # the same encoder, another Learner
    cb = term(objective=BYOL(dim=8, hidden=8))
    cb.load_state_dict(first.byol.state_dict())
    fit(make_learn(cb, model=deepcopy(first.model))) # a checkpoint goes on

@pytest.mark.parametrize('name', ['opt','model','dls','xb','pred','loss','epoch','recorder','fit','metrics','cbs'])
def test_a_name_that_the_learner_has(name):
    learn = make_learn()
    with pytest.raises(ValueError, match=f"cannot be called '{name}'|called '{name}' already"): learn.add_cb(term(name=name))
    fit(learn)

def test_names():
    for name in ('train','valid','',3):
        with pytest.raises(ValueError, match='name must be|cannot be called'): term(name=name)
    assert fit(make_learn(term(name='accuracy'))).recorder.metric_names[3:5]==['accuracy','accuracy_loss']

def test_callbacks_come_and_go_together():
    "What a term brings into the learner leaves with it"
    learn,cb = make_learn(),term()
    kinds = lambda: sorted(type(o).__name__ for o in learn.cbs)
    was = kinds()
    learn.add_cb(cb)
    learn.remove_cb(cb)
    assert kinds()==was
    with learn.added_cbs(cb): fit(learn)
    assert kinds()==was
    learn.add_cb(cb)
    with learn.removed_cbs(cb): assert kinds()==was
    fit(learn)
    learn.remove_cb(type(cb))
    assert kinds()==was

def test_before_any_fit_it_keeps_quiet():
    "Of images without labels there is no loss; that is no concern of a term's"
    learn = make_learn(term(), make_dls(labelled=False))
    with quietly(learn):
        assert learn.get_preds()[0].shape==(12,4)
        learn.summary()

# Hooks

def test_hooks_see_the_tasks_pass_only():
    from fastai.callback.hook import ActivationStats
    res = []
    for cbs in (None, term(ready=True)):
        set_seed(7)
        m = pooled(plain_body())
        st = ActivationStats(modules=[o for o in m.modules() if isinstance(o, nn.Conv2d)])
        fit(make_learn(cbs, model=m), 1, 'fit', 0., cbs=st)
        res.append(st.stats)
    assert same([list(o) for o in res[0]], [list(o) for o in res[1]])

def test_alone_the_terms_pass_is_what_hooks_see():
    learn,seen = alone(),[]
    with Hook(learn.model[0].body[0], lambda m,i,o: seen.append(len(o)) if m.training else None): fit(learn)
    assert seen==[8 if is_pretext() else 16]*3

def test_hooks_are_put_back():
    m = nn.Sequential(nn.Linear(2,2), nn.Linear(2,2))
    mine = m[0].register_forward_hook(lambda m,i,o: None)
    hook = hook_output(m[0])
    was = [dict(o._forward_hooks) for o in m.modules()]
    with pytest.raises(RuntimeError), unseen_by_hooks(m):
        assert len(m[0]._forward_hooks)==1
        raise RuntimeError
    assert [dict(o._forward_hooks) for o in m.modules()]==was and list(m[0]._forward_hooks)==list(was[1])

def test_a_unet_trains_as_without_the_terms_pass():
    "A DynamicUnet keeps its encoder's features by hooks; the term's pass at weight 1e-30 moves nothing of them"
    res = []
    for cbs in (None, term(1e-30, ready=True)):
        set_seed(0)
        ds = [(TensorImage(x), TensorMask((x[0]>.5).long())) for x in images(8, 32)[0]]
        dls = DataLoaders.from_dsets(ds, ds, bs=4, device='cpu', num_workers=0, shuffle=False)
        model = models.unet.DynamicUnet(body(), 2, (32,32))
        learn = Learner(dls, model, loss_func=CrossEntropyLossFlat(axis=1), cbs=cbs)
        res.append(ws(fit(learn, 1, 'fit', 1e-2).model))
    assert torch.allclose(*res, atol=1e-6)

# fine_tune

def test_fine_tune_runs_a_schedule_once():
    for freeze,n in ((1,3), (2,2), (0,2)):
        pcts = []
        cb = term(lambda p: pcts.append(p) or 1.)
        learn = make_learn(cb, splitter=two_groups)
        for _ in range(2): # and again: a new training
            pcts.clear()
            with quietly(learn): learn.fine_tune(n, freeze_epochs=freeze)
            assert pcts[0]==0 and pcts==sorted(pcts) and .7<max(pcts)<1
            assert abs(pcts[2*3*freeze]-freeze/(freeze+n))<1e-6
        fit(learn)
        assert cb._span[:2]==(0.,1.)

# Answers that a term alone cannot give

def test_alone_what_asks_for_predictions_is_told():
    learn = alone()
    with quietly(learn):
        for _ in range(2): # an error must not leave fastai's lock closed
            with pytest.raises(ValueError, match='with_loss: a term has no loss for each image'): learn.get_preds(with_loss=True)
            with pytest.raises(ValueError, match='predicts nothing'): learn.get_preds(with_decoded=True)
        assert learn.logger is noop and not learn.lock.locked()
    assert learn.logger is print
    with pytest.raises(ValueError, match='accuracy: a term alone gives no predictions.*KNNMonitor'): fit(alone(metrics=accuracy)) if is_pretext() else alone(metrics=accuracy)
    learn.metrics = [accuracy, Perplexity()]
    with pytest.raises(ValueError, match='accuracy: a term alone'): fit(learn)

@pytest.mark.parametrize('labelled', [False,True])
@pytest.mark.parametrize('mix', [MixUp, CutMix])
def test_mixing_without_labels(mix, labelled):
    learn = alone(make_dls(labelled=labelled))
    with pytest.raises(ValueError, match=f'{mix.__name__} mixes labels'): fit(learn, cbs=mix(.4))

def test_repr():
    assert repr(ContrastiveCallback(SimCLR()))=='ContrastiveCallback(SimCLR())'
    r = repr(ContrastiveCallback(SimCLR(temp=.7), weight=.5, update_bn=True, dl=make_dls()))
    assert r.startswith('ContrastiveCallback(SimCLR(') and r.endswith(', weight=0.5, dl=<DataLoaders>, update_bn=True)')
    assert 'Pairs' not in r

# Channels

def grey(n=16, c=1): return DataLoaders.from_dsets(*[[(TensorImage(x[:1].expand(c,-1,-1)), TensorCategory(y)) for x,y in zip(*images(n))]]*2, bs=8, device='cpu', num_workers=0)

@pytest.mark.parametrize('c', [1,5])
def test_learners_take_the_channels_of_the_images(c):
    dls = grey(c=c)
    with pytest.warns(UserWarning, match=f'batch has {c} channel.*need RGB: views leave'): learn = fit(contrastive_learner(dls, 'xresnet18', SimCLR(dim=8)))
    assert learn.model[0].n_in==c
    assert finetune_learner(dls, 'xresnet18', n_out=4, loss_func=CrossEntropyLossFlat()).model[0].n_in==c
    for f in (lambda e: contrastive_learner(dls, e, SimCLR()), lambda e: finetune_learner(dls, e, n_out=4, loss_func=CrossEntropyLossFlat())):
        with pytest.raises(ValueError, match=f'the images have {c} channels, and the encoder .* takes 3'): f(create_encoder(body()))
    set_seed(3)
    was = torch.get_rng_state()
    n_channels(dls)
    assert torch.equal(was, torch.get_rng_state())

def test_too_few_images():
    "Every batch would be passed over, and nothing trained"
    with pytest.raises(ValueError, match=f'{term().name} needs batches of 2 images or more: the loader has 1 in all'): fit(make_learn(term(), make_dls(n=1, bs=8)))
    with pytest.raises(ValueError, match='the loader has 1 in all'): fit(make_learn(term(dl=make_dls(n=1, bs=8).train)))

def test_views_of_a_size_that_the_encoder_cannot_take():
    class Even(nn.Module):
        def forward(self, x):
            if x.shape[-1]==16: raise AssertionError('Input height (16) should be divisible by patch size (7)')
            return x
    learn = make_learn(term(views=lambda x: [x, F.interpolate(x, 20)]), model=pooled(nn.Sequential(Even(), *body())), dls=make_dls(size=14))
    fit(learn)
    learn = make_learn(term(views=lambda x: [F.interpolate(x, 16), F.interpolate(x, 20)]), model=pooled(nn.Sequential(Even(), *body())), dls=make_dls(size=14))
    with pytest.raises(ValueError, match=r'simclr failed on views of 16×16 and 20×20 pixels \(Input height \(16\) .* pass views='): fit(learn)

def test_two_terms_in_one_learner():
    a,b = term(ready=True),term(.5, ready=True, name='again')
    learn = make_learn([a,b])
    was = head_ws(a),head_ws(b)
    fit(learn)
    assert not torch.equal(was[0], head_ws(a)) and not torch.equal(was[1], head_ws(b))
    assert learn.recorder.metric_names[4:]==[*col_names(a, b),'time'] and getattr(learn, a.name) is a and learn.again is b
    check_clean(learn)

def test_two_terms_alone():
    learn = alone(ready=True, cbs=term(ready=True, name='b', update_bn=True))
    a = term_of(learn)
    was = head_ws(a),head_ws(learn.b)
    fit(learn)
    assert not torch.equal(was[0], head_ws(a)) and not torch.equal(was[1], head_ws(learn.b))
    for o in col_names(a, learn.b): assert col(learn, o)>0 or ('accuracy' in o and col(learn, o)==0)

def test_alone_a_term_without_weight_does_not_keep_the_others_from_training():
    learn = alone(ready=True, cbs=term(lambda p: float(p>=.5), ready=True, name='later'))
    was,heads = ws(learn.model),head_ws(learn.later)
    fit(learn, cbs=At('after_step', lambda l: (was.copy_(ws(l.model)-was), heads.copy_(head_ws(l.later)-heads))))
    assert was.any() and not heads.any()
    fit(learn, 2)
    assert heads.shape==head_ws(learn.later).shape and math.isnan(col(learn, 'later_loss', 0)) and col(learn, 'later_loss')>0

# State

@grid(opt=opts, disk=[False,True])
def test_three_steps_and_two_are_five(opt, disk):
    def _mk():
        cb = term(seeded=True, fixed=True, norms=True)
        return make_learn(cb, opt_func=opts[opt], path=Path.cwd()),cb
    def _run(learn, a, b):
        bs = list(learn.dls.train)
        dl = learn.dls.train
        learn.dls.loaders[0] = [(bs*2)[i] for i in range(a,b)]
        fit(learn, 1, 'fit', 1e-2, cbs=At('before_validate', throw(CancelValidException())))
        learn.dls.loaders[0] = dl
    learn,cb = _mk()
    _run(learn, 0, 5)
    want = ws(learn.model),head_ws(cb),ws(cb.module)
    l1,c1 = _mk()
    _run(l1, 0, 3)
    l1.save('three')
    sd = c1.state_dict()
    if disk: torch.save(sd, 'cb.pth'); sd = torch.load('cb.pth', weights_only=True)
    else: _run(l1, 3, 5) # What was taken must not change when training goes on
    l2,c2 = _mk()
    c2.load_state_dict(sd)
    l2.load('three', with_opt=True, weights_only=False)
    _run(l2, 3, 5)
    assert all(torch.allclose(a, b, atol=1e-6) for a,b in zip(want, (ws(l2.model), head_ws(c2), ws(c2.module))))

def test_state_of_another_callback_is_refused():
    cb = term_of(fit(make_learn(term())))
    with pytest.raises(ValueError, match=f"'{cb.name}', the callback is 'x'"): term(name='x').load_state_dict(cb.state_dict())
    sd = cb.state_dict()
    sd['opt']['state'].pop()
    n = len(cb.heads)
    with pytest.raises(ValueError, match=f'{n-1} head parameters does not fit {n}'): term(ready=is_pretext()).load_state_dict(sd)

def test_state_before_the_first_batch():
    a,b = term(),term()
    b.load_state_dict(a.state_dict())
    assert not b.is_built

def test_copies_train_apart():
    cb = term_of(fit(make_learn(term())))
    c2 = deepcopy(cb)
    assert c2.learn is None and torch.equal(head_ws(cb), head_ws(c2)) and same(cb.loan.state_dict(cb.heads), c2.loan.state_dict(c2.heads))
    fit(make_learn(c2))
    assert not torch.equal(head_ws(cb), head_ws(c2))

def test_a_copied_learner_trains_as_the_original():
    learn = fit(make_learn(term()))
    other = deepcopy(learn)
    assert term_of(other).learn is other
    assert torch.equal(ws(fit(learn).model), ws(fit(other).model)) and torch.equal(head_ws(term_of(learn)), head_ws(term_of(other)))

def test_a_new_optimizer_starts_the_heads_momentum_anew():
    learn = fit(make_learn(term(), opt_func=Adam))
    fit(learn, reset_opt=True)
    assert {s['step'] for s in term_of(learn).loan.state.values()}=={3}

# Objectives

def test_objectives_by_name_and_instance():
    o = SimCLR()
    assert get_objective(o) is o and type(get_objective('simclr')) is SimCLR and type(get_objective('SimCLR')) is SimCLR

def test_views_of_one_size_share_a_pass():
    o,calls = SimCLR(),[]
    def _enc(x): calls.append(tuple(x.shape)); return x.mean((2,3))
    vs = [torch.randn(2,3,s,s) for s in (8,4,8)]
    res = o.encode(_enc, vs)
    assert calls==[(4,3,8,8),(2,3,4,4)] and all(torch.equal(a, v.mean((2,3))) for a,v in zip(res, vs))

@pytest.mark.parametrize('f, e, msg', [
    (lambda: ContrastiveCallback(SimCLR),                       TypeError,  r'pass an instance, SimCLR\(\)'),
    (lambda: ContrastiveCallback('simcrl'),                     ValueError, "unknown objective 'simcrl'. Did you mean 'simclr'"),
    (lambda: ContrastiveCallback(3),                            TypeError,  'must be an Objective or its name: got int 3'),
    (lambda: term(views=3),                                     TypeError,  'views must be callable.*int'),
    (lambda: SimCLR(temp=0),                                    ValueError, 'temp must be above 0: got 0'),
    (lambda: finetune_learner(make_dls(labelled=False), body()), ValueError, 'needs labelled DataLoaders'),
    (lambda: fit(make_learn(term(objective=Objective()))),      NotImplementedError, 'Objective has no loss'),
    (lambda: fit(make_learn(term(objective=built(nf=99)))),     ValueError, 'built for an encoder of width 99, this one has 12'),
])
def test_bad_objectives_are_named(f, e, msg):
    with pytest.raises(e, match=msg): f()

@pytest.mark.parametrize('f, e, msg', [
    (lambda: term(-.1),                                         ValueError, 'weight must be a number of 0 or more.*-0.1'),
    (lambda: term(float('nan')),                                ValueError, 'weight must be'),
    (lambda: term('1'),                                         ValueError, "weight must be.*'1'"),
    (lambda: make_learn([term(), term()]),                      ValueError, "a callback called '{name}' already: pass name="),
    (lambda: make_learn(term(), model=Net()),                   ValueError, 'cannot find the encoder.*trunk, fc'),
    (lambda: make_learn(term(encoder=lambda m: nn.Linear(1,1))), ValueError, 'is no part of Sequential'),
])
def test_bad_input_is_named(f, e, msg):
    with pytest.raises(e, match=msg.replace('{name}', term().name)): f()

class Net(Module):
    def __init__(self): self.trunk,self.fc = plain_body(),nn.Linear(12,4)
    def forward(self, x): return self.fc(self.trunk(x).mean((2,3)))

def test_encoder_can_be_picked():
    cb = term(encoder=lambda m: m.trunk, ready=True)
    learn = make_learn(cb, model=Net())
    was = head_ws(cb)
    fit(learn)
    assert not torch.equal(was, head_ws(cb))

def test_a_refused_callback_leaves_the_learner_usable():
    learn = make_learn(first:=term())
    with pytest.raises(ValueError): learn.add_cb(term())
    fit(learn)
    assert getattr(learn, first.name) is first and len(learn._grab_cbs(TermCallback))==1

# Fine-tuning

def test_finetune_learner_is_plain_fastai():
    dls = make_dls(after_batch=[Normalize.from_stats(*imagenet_stats, cuda=False)])
    enc = create_encoder(body())
    set_seed(0)
    learn = finetune_learner(dls, enc, n_out=4, loss_func=CrossEntropyLossFlat())
    assert learn.model[0] is enc and type(learn) is Learner and type(learn.model) is nn.Sequential
    learn.create_opt()
    assert [len(g) for g in learn.opt.param_lists]==[6,2]
    fit(learn, 8, 'fine_tune', 2e-2)
    assert learn.recorder.values[-1][2]>.5

def test_finetune_metrics_follow_the_labels():
    x = images(8)[0]
    def _learn(ys, loss, **kw):
        ds = [(TensorImage(a), b) for a,b in zip(x, ys)]
        dls = DataLoaders.from_dsets(ds, ds, bs=4, device='cpu', num_workers=0)
        return fit(finetune_learner(dls, body(), n_out=3, loss_func=loss, **kw))
    names = lambda l: [m.name for m in l.metrics]
    assert names(_learn([TensorCategory(0)]*8, CrossEntropyLossFlat()))==['accuracy']
    assert names(_learn(torch.eye(8)[:,:3].unbind(), BCEWithLogitsLossFlat()))==['accuracy_multi']
    assert names(_learn(torch.rand(8,3).unbind(), MSELossFlat()))==['_rmse']
    assert names(_learn(torch.rand(8,3).unbind(), F.mse_loss))==[]
    assert names(_learn([TensorCategory(0)]*8, CrossEntropyLossFlat(), metrics=error_rate))==['error_rate']
    with pytest.raises(ValueError, match='labels are masks: use unet_learner'): _learn([TensorMask(torch.zeros(16,16).long())]*8, CrossEntropyLossFlat(axis=1))

@pytest.mark.parametrize('have', [None,(.5,.5)])
def test_an_encoder_with_statistics_meets_loaders_with_others(have):
    "... or with none, in every learner"
    enc = create_encoder(body())
    enc.stats = dict(mean=[.1]*3, std=[.2]*3)
    dls = make_dls(after_batch=norm(*have) if have else None)
    for f in (lambda: contrastive_learner(dls, enc, SimCLR()), lambda: finetune_learner(dls, enc, n_out=4, loss_func=CrossEntropyLossFlat())):
        with pytest.warns(UserWarning, match='normalised in two ways'): f()
    enc.stats = stats_of(dls)
    contrastive_learner(dls, enc, SimCLR())

def test_finetuning_warns_of_another_normalisation():
    enc = create_encoder(body())
    enc.stats = dict(mean=[.1,.1,.1], std=[1.,1.,1.])
    dls = make_dls(after_batch=[Normalize.from_stats(*imagenet_stats, cuda=False)])
    with pytest.warns(UserWarning, match='normalised'): finetune_learner(dls, enc, n_out=4, loss_func=CrossEntropyLossFlat())

class Who(SimCLR):
    "Notes which images it is told that these are, beside what they are"
    needs_ids = True
    def forward(self, encoder, views, y=None):
        self.seen = getattr(self, 'seen', [])+[(self.ids, views[0][:,0,0,0].detach())]
        return super().forward(encoder, views, y)

def numbered(n, **kwargs):
    "Images whose pixels are their number"
    ds = [(TensorImage(torch.full((3,16,16), float(i))),TensorCategory(i%4)) for i in range(n)]
    return DataLoader(ds, bs=8, num_workers=0, device='cpu', **{'shuffle':True, 'drop_last':True, **kwargs})

@pytest.mark.parametrize('dl', [False,True])
def test_which_images_they_are_whoever_else_asks_the_loader(dl):
    "Two terms that are fed by one loader, and a callback that asks it for a batch in the middle of an epoch"
    train,second = numbered(24),numbered(40) if dl else None
    cbs = [term(objective=Who(dim=8), views=lambda x: [x,x+.1], name=k, dl=second) for k in 'ab']
    learn = make_learn([*cbs, At('after_batch', lambda l: (second or train).one_batch(), n=1)], dls=DataLoaders(train, numbered(8)))
    fit(learn, 2)
    for cb in cbs:
        assert len(cb.objective.seen)==6
        for ids,x in cb.objective.seen: assert torch.equal(ids.float(), x)
