"What every pretext task has to do, over the registry: a new one gets these tests for nothing"
import pytest
import matplotlib
matplotlib.use('Agg')
from utils import *
from fastai_contrastive.all import *
from fastai_contrastive.recipes import Recipe, recipe_learner

names = sorted(k for k,v in PretextTask.registry.items() if v.__module__.startswith('fastai_contrastive.'))
# Consistency has no question of its own: it asks whatever is trained (tests of it: test_consistency)
alone = [o for o in names if o!='consistency']
each = pytest.mark.parametrize('name', alone)
size = 32
pytestmark = pytest.mark.usefixtures('strict')

def made(name, **kwargs): return PretextTask.registry[name](**kwargs)
def clips(task): return getattr(task, 'takes', 'images')=='clips'

def enc_for(name, n_in=3, seed=0):
    torch.manual_seed(seed)
    if name=='mae':
        pytest.importorskip('timm')
        return create_encoder('test_vit', n_in, patch_size=8, depth=2)
    return create_encoder('xresnet_narrow', n_in, nf=32, blocks=1)

def clean(n=8, size=size, c=3, seed=0):
    x = images(n, size, seed)[0]
    return x if c==3 else x[:,:1].repeat(1, c, 1, 1)*(1-torch.arange(c).view(c,1,1)/(2*c))

def question_for(task, x):
    "What `task` takes, made of images: a clip is four of an image's shades"
    return torch.stack([x*f for f in (.7,.8,.9,1.)], 1) if clips(task) else x

class Items(list):
    "(image, class) or (clip,)"
    def new_empty(self): return Items()

def dls_for(task, n=20, bs=8, size=size, c=3, labelled=False):
    x,y = clean(n, size, c),images(n, size)[1]
    x = question_for(task, x)
    items = Items((TensorImage(o),)+((TensorCategory(t),) if labelled else ()) for o,t in zip(x, y))
    norm = [Normalize.from_stats([.5]*c, [.25]*c)]
    dls = DataLoaders.from_dsets(items, Items(items[:9]), bs=bs, shuffle=False, drop_last=False, device='cpu', num_workers=0, after_batch=norm)
    dls.n_inp = 1
    return dls

def learner(name, cbs=None, **kwargs):
    task = made(name)
    c = kwargs.get('c', 3)
    return pretext_learner(dls_for(task, **kwargs), enc_for(name, c), task, cbs=cbs)

def fit(learn, n=1, lr=1e-3, **kwargs):
    with learn.no_bar(), learn.no_logging(): learn.fit(n, lr, **kwargs)

def run(task, enc, x, train=True):
    "Loss and prediction for a batch of clean images"
    q,a = ask(task, question_for(task, x))
    set_seed(1)
    m = PretextModel(enc, task.head(enc)).train(train)
    p = m(*q)
    return m,task.loss_func(p, *a),p

@each
def test_one_step_moves_encoder_and_head(name):
    "The last batch has four images, the validation's last one"
    learn = learner(name)
    was = ws(learn.model[0]).clone(),ws(learn.model[1]).clone()
    fit(learn)
    assert not torch.equal(was[0], ws(learn.model[0]))
    if was[1].numel(): assert not torch.equal(was[1], ws(learn.model[1]))
    assert all(math.isfinite(o) for o in learn.recorder.values[-1])

@each
def test_the_loss_is_one_number_with_gradient(name):
    task,enc = made(name),enc_for(name)
    m,loss,p = run(task, enc, clean())
    assert loss.numel()==1 and torch.isfinite(loss)
    loss.backward()
    g = torch.cat([q.grad.flatten() for q in enc.parameters() if q.grad is not None])
    assert torch.isfinite(g).all() and g.norm()>0

@each
def test_the_question_leaves_the_images_alone_and_is_drawn_anew(name):
    task,x = made(name),clean()
    given = question_for(task, x)
    was = given.clone()
    a,b = (ask(task, given) for _ in range(2))
    assert torch.equal(given, was)
    flat = lambda o: torch.cat([v.float().flatten() for part in o for v in part])
    same = flat(a).shape==flat(b).shape and torch.equal(flat(a), flat(b))
    assert not same or name in never_drawn
    a,b = (ask(task, given, 3) for _ in range(2))
    assert torch.equal(flat(a), flat(b))

never_drawn = {'colorization'} # What it asks of an image is always the same

@each
def test_a_batch_of_one(name):
    "Where batch norms can normalise it: after training"
    m,loss,p = run(made(name), enc_for(name), clean(1), train=False)
    assert torch.isfinite(loss)

@each
@pytest.mark.parametrize('dtype', [torch.bfloat16,torch.float16])
def test_mixed_precision(name, dtype):
    learn = learner(name, CPUMixed(dtype))
    fit(learn)
    assert math.isfinite(learn.recorder.values[-1][0]) and torch.isfinite(ws(learn.model)).all()

@each
def test_the_encoder_is_an_ordinary_one(name, tmp_path):
    "Its file loads, its features are the same, and the learner's export opens again"
    learn = learner(name)
    keys = list(enc_for(name).state_dict())
    fit(learn)
    assert list(learn.model[0].state_dict())==keys
    save_encoder(learn, tmp_path/'e.safetensors')
    enc,x = load_encoder(tmp_path/'e.safetensors').eval(),clean()
    learn.model.eval()
    torch.testing.assert_close(enc(x), learn.model[0](x))
    assert not any(o._forward_hooks or o._forward_pre_hooks for o in learn.model.modules())
    learn.path = tmp_path
    learn.export('l.pkl')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        again = load_learner(tmp_path/'l.pkl')
    torch.testing.assert_close(again.model[0](x), learn.model[0](x))

@each
def test_save_load_and_a_second_fit(name, tmp_path):
    learn = learner(name)
    learn.path = tmp_path
    fit(learn)
    learn.save('a', with_opt=True)
    was = ws(learn.model).clone()
    fit(learn)
    assert not torch.equal(was, ws(learn.model))
    learn.load('a', with_opt=True)
    assert torch.equal(was, ws(learn.model))

@each
def test_lr_find_puts_back(name):
    learn = learner(name)
    was = ws(learn.model).clone()
    with learn.no_bar(), learn.no_logging(): learn.lr_find(num_it=5, show_plot=False)
    assert torch.equal(was, ws(learn.model))

@each
def test_validation_is_the_same_each_time(name):
    learn = learner(name)
    with learn.no_bar():
        set_seed(0); a = learn.validate()
        set_seed(9); b = learn.validate()
    assert list(a)==list(b)

@each
@pytest.mark.parametrize('hw', [(40,40),(33,33),(24,24)])
def test_odd_sizes_work_or_are_refused_by_name(name, hw):
    task = made(name)
    try: m,loss,p = run(task, enc_for(name), clean(4, hw[0]))
    except ValueError as e: assert re.search(r'\d', str(e)) and re.search('size|pixel|square|divi', str(e)), e
    else: assert torch.isfinite(loss)

@each
@pytest.mark.parametrize('c', [1,5])
def test_other_channels_work_or_are_refused_by_name(name, c):
    try: learn = learner(name, c=c); fit(learn)
    except ValueError as e: assert re.search('channel|grey|RGB|colour', str(e)), e
    else: assert math.isfinite(learn.recorder.values[-1][0])

@each
@pytest.mark.parametrize('term', [False,True])
def test_images_that_never_were_0_to_1(name, term):
    "Reflectances to 4000 are asked about as well as any, or refused before a step; the question is never a constant"
    task,seen = made(name),{}
    x = question_for(task, clean(20)*4000)
    items = Items((TensorImage(o),TensorCategory(0)) for o in x)
    norm = Normalize.from_stats([2000.]*3, [1155.]*3)
    dls = DataLoaders.from_dsets(items, items[:8], bs=8, device='cpu', num_workers=0, after_batch=norm)
    dls.n_inp,make = 1,task.make
    def noted(x):
        seen['in'],(seen['q'],a) = x,make(x)
        return seen['q'],a
    task.make,enc = noted,enc_for(name)
    other = 'frame_order' if clips(task) else 'rotation'
    learn = pretext_learner(dls, enc, other, cbs=PretextTerm(task)) if term else pretext_learner(dls, enc, task)
    was = ws(learn.model).clone()
    try: fit(learn)
    except ValueError as e: assert 'from 0 to 1' in str(e) and torch.equal(was, ws(learn.model)) and name in about_pixels
    else:
        assert name not in about_pixels
        q = seen['q'][0] if isinstance(seen['q'], tuple) else seen['q']
        assert q.std()>.2*seen['in'].std() and len(q.unique())>100

about_pixels = {'colorization','corruption','denoising'}

@each
def test_it_is_shown(name):
    learn = learner(name)
    learn.show_batch(max_n=3)
    fit(learn)
    learn.show_results(max_n=3)
    n = len(plt.get_fignums())
    assert n>=2, 'no picture was drawn'
    for i in plt.get_fignums(): plt.figure(i).canvas.draw()

@each
def test_copies_and_repr(name):
    task = made(name)
    assert eval(repr(task), {**globals(), **{type(task).__name__:type(task)}}).__dict__.keys()==task.__dict__.keys()
    learn = learner(name)
    fit(deepcopy(learn))

@pytest.mark.parametrize('name', names)
def test_as_a_term_its_state_goes_on(name):
    "The head's state of a term goes into a new one, and is what it was"
    def new(seed):
        torch.manual_seed(seed)
        task,cb = made(name),PretextTerm(made(name))
        enc = enc_for(name)
        if clips(task): return pretext_learner(dls_for(task), enc, 'frame_order', cbs=cb),cb
        return Learner(dls_for(task, labelled=True), nn.Sequential(enc, nn.Linear(enc.nf, 4)), loss_func=CrossEntropyLossFlat(), cbs=cb),cb
    learn,cb = new(0)
    fit(learn)
    assert cb.column in learn.recorder.metric_names
    assert math.isfinite(learn.recorder.values[-1][list(learn.recorder.metric_names).index(cb.column)-1])
    sd = cb.state_dict()
    other,again = new(1)
    again.load_state_dict(deepcopy(sd))
    fit(other, lr=0.)
    a,b = sd['module'],again.state_dict()['module']
    assert a.keys()==b.keys()
    for k in a:
        if 'running' not in k and 'num_batches' not in k: torch.testing.assert_close(a[k], b[k])

@each
def test_the_recipe_knows_it(name):
    "`contrastive-pretrain --task` makes it by its name"
    r = Recipe('synth', size, 8, 'test_vit' if name=='mae' else 'xresnet_narrow', dict(patch_size=8, depth=2) if name=='mae' else dict(nf=32, blocks=1), name, epochs=1)
    if clips(made(name)): pytest.skip('a recipe is about images')
    learn = recipe_learner(r, dls_for(made(name)))
    fit(learn)
    assert math.isfinite(learn.recorder.values[-1][0])
