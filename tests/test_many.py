"""Several processes against one on the joined batch, over the registry: term, gradient and all that is remembered

One spawn does all of it, with two processes; `pytest -m slow` does it with four.
"""
import forked, json, os, pytest, socket, subprocess, sys, torch.distributed as dist
from contextlib import ExitStack
from utils import *
from test_objectives import conv_body, make
from fastai_contrastive.distributed import *
from fastai_contrastive.processes import *
from fastai_contrastive.processes import _mean_grads, _swap_norms
from fastai_contrastive.objectives import *
from fastai_contrastive.encoder import *
from fastai_contrastive import cli
from fastai_contrastive.terminal import _run

# An objective that would not be equal has its reason here, by name
not_equal = {}
names = sorted(k for k,v in Objective.registry.items() if v.__module__.startswith('fastai_contrastive.'))
each = pytest.mark.parametrize('name', names)
besides = 'alone','task','labels'
in_pieces = 'simclr','byol','timecontrastive' # Also through the networks in pieces, of which each process makes as many
bs,lasts = 8,(5,2,8,1) # Images in each process's last batch
settings = dict(n_neg=100, freeze=0, queue_start=0, momentum=.7, center_momentum=.5)

def joint_ce(pred, y): return own_mean(F.cross_entropy(pred, y), y)

class Same(Callback):
    "Whatever is drawn is drawn alike on all processes, and on one; notes gradients"
    order = -6
    def before_fit(self): self.got = []
    def before_batch(self): torch.manual_seed(10*self.epoch+self.iter)

class Grads(Callback):
    "Gradients of each step, of the model and of the heads"
    order = 40
    def before_fit(self): self.got = []
    def after_backward(self):
        term = term_of(self.learn)
        self.got.append([None if p.grad is None else p.grad.clone() for p in [*self.learn.model.parameters(), *term.heads]])

class OneFrame(Callback):
    "The labels are of the first frame"
    def before_batch(self): self.learn.xb = tuple(x[:,0] if x.ndim==5 else x for x in self.xb)

class OfFrames(ByPixels):
    takes = 'clips'
    def make(self, x): return super().make(x[:,0])
del PretextTask.registry['of_frames']

def data(n, clips):
    x,y = images(n, 32)
    if clips: x = torch.stack([x.roll(2*i, -1)*(1-.1*i) for i in range(5)], 1)
    return list(zip(x, y))

def own_dls(clips, i, n):
    "Loaders of process `i` of `n`, whose last batches are uneven; of all of them together for None"
    at = [0,*np.cumsum([bs+o for o in lasts[:n]]).tolist()]
    own = [list(range(a, b)) for a,b in zip(at, at[1:])]
    idxs = sum([o[k*bs:(k+1)*bs] for k in range(2) for o in own], []) if i is None else own[i]
    ds,b = data(at[-1], clips),bs*n if i is None else bs
    dls = DataLoaders(DataLoader(ds, bs=b, n=len(idxs), get_idxs=lambda: idxs, device='cpu'), DataLoader(ds[:bs], bs=b, device='cpu'))
    dls.n_inp = 1
    return dls

def learner(name, beside, dls, n, chunk=None, **kwargs):
    "A small one, the same at every call; its queue is full after one batch of all `n` processes"
    set_seed(7)
    obj = make(name, queue_size=bs*n, **settings)
    enc = obj.prepare(create_encoder(conv_body()))
    views = lambda x: two_views(x)[:obj.max_views or 2]
    kw = dict(opt_func=SGD, cbs=[Same(),Grads()], **kwargs)
    if beside=='alone': return contrastive_learner(dls, enc, obj, views=views, chunk=chunk, **kw)
    kw['cbs'] += [ContrastiveCallback(obj, views, weight=.5, chunk=chunk), *[OneFrame()]*(beside=='labels')]
    if beside=='labels': return finetune_learner(dls, enc, n_out=4, loss_func=joint_ce, metrics=[], **kw)
    return pretext_learner(dls, enc, OfFrames() if obj.takes=='clips' else ByPixels(), loss_func=joint_ce, metrics=[], **kw)

def outcome(learn, **kwargs):
    "Numbers of a short training; at a low rate, since what is rounded otherwise grows from step to step"
    with quietly(learn), many_processes(learn, **kwargs): learn.fit(1, 2e-3)
    cb = term_of(learn)
    return dict(history=cb.history, grads=learn.grads.got, model=ws(learn.model), state=cb.state_dict()['objective'], values=[[float(v) for v in o] for o in learn.recorder.values])

def one(name, beside, n): return outcome(learner(name, beside, own_dls(is_clips(name), None, n), n))
def is_clips(name): return Objective.registry[name].takes=='clips'

# What the processes do

def _fed(kind, n=24):
    "Which images each process is given by a loader that is shared out, in two rounds"
    ds = [(torch.full((1,), float(i)),) for i in range(n)]
    dl = dict(fastai=lambda: DataLoader(ds, bs=4, shuffle=True, device='cpu'), torch=lambda: torch.utils.data.DataLoader(ds, 4, shuffle=True),
              batches=lambda: [(torch.arange(i, i+4.)[:,None],) for i in range(0, n, 4)], stream=lambda: DataLoader(iter_of(ds), bs=4, device='cpu'))[kind]()
    dl = own_dl(dl)
    assert own_dl(dl) is dl
    res = [torch.cat([b[0][:,0] for b in dl]) for _ in range(2)]
    return res,len(dl) if kind!='stream' else None

class iter_of(torch.utils.data.IterableDataset):
    def __init__(self, ds): self.ds = ds
    def __iter__(self): return iter(self.ds)

def _second_loader():
    "What the term of a second loader is fed"
    seen = []
    dl = DataLoader(data(32, False), bs=4, shuffle=True, device='cpu')
    cb = ContrastiveCallback(make('simclr'), views=lambda x: (seen.append(x.clone()), two_views(x))[1], dl=dl)
    learn = finetune_learner(make_dls(n=16*world(), bs=4, size=32), create_encoder(conv_body()), n_out=4, loss_func=joint_ce, metrics=[], cbs=cb, opt_func=SGD)
    with quietly(learn), many_processes(learn): learn.fit(1, .05)
    return torch.cat(seen)[:32//world()].flatten(1)[:,:3]

def _learner_parts():
    "Weights that only one process uses, or none; what is put back after the fit, or after an error within"
    a,b,c = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    a.grad = torch.full((2,), 1.+rank())
    if not rank(): b.grad = torch.ones(2)
    _mean_grads([a,b,c])
    learn = make_learn(dls=make_dls(n=26, bs=4, drop_last=True))
    was,draws = list(learn.dls.loaders),[]
    learn.add_cb(At('before_batch', lambda l: draws.append(torch.rand(1).item())))
    learn.add_cb(At('after_batch', throw(KeyboardInterrupt), n=2))
    with quietly(learn):
        try:
            with many_processes(learn): learn.fit(1)
        except KeyboardInterrupt: pass
        back = all(p is q for p,q in zip(learn.dls.loaders, was)) and not [o for o in learn.cbs if isinstance(o, ManyProcesses)]
        learn.remove_cb(At)
        with many_processes(learn): learn.fit(1)
    return dict(a=a.grad, b=b.grad, c=c.grad, back=back, draws=draws, steps=learn.train_iter, pct=float(learn.pct_train), n_iter=learn.n_iter, model=ws(learn.model), loss=learn.recorder.losses[-1])

def _command(f, argv, out):
    "Standard output, error and status of a command, which meets the others at a port of its own, as a launcher's do"
    os.environ['MASTER_PORT'] = ports.pop()
    sys.argv = [f'contrastive-{f.__name__}',*map(str, argv)]
    with open(f'{out}.out','w') as o, open(f'{out}.err','w') as e:
        was,(sys.stdout,sys.stderr) = (sys.stdout,sys.stderr),(o,e)
        try: _run(f); status = 0
        except SystemExit as ex: status = ex.code
        finally: sys.stdout,sys.stderr = was
    return Path(f'{out}.out').read_text(),Path(f'{out}.err').read_text(),status

def _commands(d, imgs):
    small = ['--data',imgs, '--size',32, '--arch','xresnet18', '--arch-args','widen=.1', '--num-workers',0, '--bs',8]
    n = os.environ['RANK']
    pre = _command(cli.pretrain, [*small, '--objective','moco', '--objective-args','queue_size=64', '--task','rotation', '--epochs',1, '--out',f'{d}/run'], f'{d}/pre{n}')
    fine = _command(cli.finetune, ['--encoder',f'{d}/run.safetensors', '--data',imgs, '--size',32, '--num-workers',0, '--bs',8, '--terms','simclr=.1', '--unlabelled',imgs, '--epochs',1], f'{d}/fine{n}')
    wrong = _command(cli.pretrain, [*small, '--objective','nosuch', '--out',f'{d}/no'], f'{d}/wrong{n}')
    return dict(pretrain=pre, finetune=fine, wrong=wrong)

ports = [] # One for each group: who is quick would else meet the one before, which is just going

def _worker(i, n, free, d, imgs):
    ports.extend(free)
    torch.set_num_threads(1)
    os.environ.update(RANK=str(i), LOCAL_RANK=str(i), WORLD_SIZE=str(n), MASTER_ADDR='127.0.0.1', MASTER_PORT=ports.pop())
    warnings.simplefilter('ignore')
    res = {}
    with process_group():
        for k in names:
            for o in besides: res[k,o] = outcome(learner(k, o, own_dls(is_clips(k), i, n), n), split=False)
        for k in ('simclr','pirl','moco'): res[k,'split'] = outcome(learner(k, 'labels', make_dls(n=16*n, bs=bs, size=32, n_valid=8), n))
        for k in in_pieces: res[k,'pieces'] = outcome(learner(k, 'labels', own_dls(is_clips(k), i, n), n, chunk=3), split=False)
        res['fed'] = {k:_fed(k) for k in ('fastai','torch','batches','stream')}
        res['second'],res['parts'] = _second_loader(),_learner_parts()
        res['counts'] = row_counts(torch.zeros(i+1, 2))
    if imgs: res['commands'] = _commands(d, imgs)
    torch.save(res, f'{d}/{i}.pt')

def spawned(n, d, imgs=None):
    with ExitStack() as stack:
        socks = [stack.enter_context(socket.socket()) for _ in range(4)]
        for s in socks: s.bind(('127.0.0.1', 0))
        free = [str(s.getsockname()[1]) for s in socks]
    forked.spawn(_worker, (n,free,str(d),imgs and str(imgs)), n)
    return [torch.load(d/f'{i}.pt', weights_only=False) for i in range(n)]

@pytest.fixture(scope='module')
def two(tmp_path_factory, synth): return spawned(2, tmp_path_factory.mktemp('two'), synth)

# What came out

def apart(a, b, least=1e-6):
    "Largest difference, over the largest number, or `least`"
    pairs = [(p,q) for p,q in zip(a, b, strict=True) if q is not None]
    assert all(p is None for p,q in zip(a, b) if q is None) and pairs
    return max((p.float()-q.float()).abs().max().item() for p,q in pairs)/max(least, max(q.float().abs().max().item() for _,q in pairs))

def check_equal(got, want, steps=2):
    for o in got:
        assert list(o['history'].step)==list(want['history'].step) and len(o['history'])==len(want['grads'])==steps
        assert np.allclose(o['history'].loss, want['history'].loss, rtol=1e-4, atol=1e-5)
        far = [apart(g, w) for g,w in zip(o['grads'], want['grads'], strict=True)]
        assert max(far)<1e-3, f'gradients of the steps are {far} apart'
        assert o['state'].keys()==want['state'].keys()
        far = {k:d for k,v in {**want['state'], 'model':want['model']}.items() if (d := apart([{**o['state'], 'model':o['model']}[k]], [v], .1))>1e-4}
        assert not far
        assert torch.equal(o['model'], got[0]['model']) and all(torch.equal(v, got[0]['state'][k]) for k,v in o['state'].items()), 'two processes differ'

@each
@pytest.mark.parametrize('beside', besides)
def test_processes_are_one_with_the_joined_batch(two, name, beside):
    "Term, gradient and state, also where the batches are uneven"
    if name in not_equal: pytest.skip(not_equal[name])
    check_equal([o[name,beside] for o in two], one(name, beside, 2))

@pytest.mark.parametrize('name', in_pieces)
def test_pieces_of_processes(two, name): check_equal([o[name,'pieces'] for o in two], one(name, 'labels', 2))

def test_state_moves():
    "What is compared above is not what it was at first: queue, centre, covariance, memory, teacher, counts"
    moved = set()
    for name in names:
        learn = learner(name, 'alone', own_dls(is_clips(name), None, 2), 2)
        at_first = {}
        learn.add_cb(At('after_backward', lambda l: at_first.update(deepcopy(term_of(l).state_dict()['objective'])), order=50))
        state = outcome(learn)['state']
        moved |= {k.split('.')[0] for k,v in state.items() if not torch.equal(v, at_first[k])}
    assert {'queue','queues','dense_queue','center','C','memory','met','ema','fit_count','step','projector','predictor','prototypes'} <= moved

@pytest.mark.parametrize('name', ['simclr','pirl','moco'])
def test_a_loader_that_is_shared_out(two, name):
    "fastai's loaders give each process a part of the order; the validation images count once"
    n,i = 32,np.arange(32).reshape(2,2,bs).swapaxes(0,1).flatten().tolist()
    dls = make_dls(n=n, bs=2*bs, size=32, n_valid=8)
    dls.loaders[0] = DataLoader(dls.train_ds, bs=2*bs, n=n, get_idxs=lambda: i, device='cpu')
    want = outcome(learner(name, 'labels', dls, 2))
    check_equal([o[name,'split'] for o in two], want)
    for o in two: assert np.allclose(o[name,'split']['values'][0][1:], want['values'][0][1:], rtol=1e-4)

@pytest.mark.parametrize('kind', ['fastai','torch','batches','stream'])
def test_each_process_has_its_own_share(two, kind):
    for e in range(2):
        a,b = (o['fed'][kind][0][e].tolist() for o in two)
        assert len(a)==len(b)==12 and sorted(a+b)==list(range(24))
    (first,second),n = two[0]['fed'][kind]
    assert n==(None if kind=='stream' else 3) and torch.equal(first, second)==(kind in ('batches','stream'))

def test_a_second_loader_is_shared_out(two):
    a,b = ({tuple(r) for r in o['second'].tolist()} for o in two)
    assert len(a)==len(b)==16 and a|b=={tuple(x.flatten()[:3].tolist()) for x,_ in data(32, False)}

def test_parts(two):
    "A weight that one process has used, and one that none has; loaders put back after Ctrl-C; whole schedules; own draws"
    for o in two:
        p = o['parts']
        assert p['a'].tolist()==[1.5,1.5] and p['b'].tolist()==[.5,.5] and p['c'] is None
        assert p['back'] and p['steps']==3 and p['pct']==1 and o['counts']==[1,2]
    a,b = (o['parts'] for o in two)
    assert a['draws']!=b['draws'] and torch.equal(a['model'], b['model'])

def test_norms_are_swapped_and_put_back():
    "PyTorch's own for several GPUs: the same weights and statistics, and in the same place"
    m = body()
    norms = [o for o in m.modules() if isinstance(o, nn.BatchNorm2d)]
    swapped = _swap_norms(m)
    new = [o for o in m.modules() if isinstance(o, nn.SyncBatchNorm)]
    assert len(new)==len(norms)==2 and all(a.weight is b.weight and a.running_var is b.running_var for a,b in zip(new, norms))
    for o,k,b in swapped: o._modules[k] = b
    assert [o for o in m.modules() if isinstance(o, nn.modules.batchnorm._BatchNorm)]==norms

def test_commands(two):
    "Files are written once, and by one; the row counts every image; the others say nothing, an error is said once"
    a,b = (o['commands'] for o in two)
    for k in ('pretrain','finetune'):
        assert a[k][2]==b[k][2]==0, a[k][1]+b[k][1]
        assert b[k][:2]==('','') and 'row:' in a[k][0]
    assert '57 images' in a['pretrain'][0] and a['wrong'][2]==b['wrong'][2]==2
    assert "unknown objective 'nosuch'" in a['wrong'][1] and b['wrong'][:2]==('','')

# With four, and started as a user does

@pytest.mark.slow
def test_four_processes(tmp_path):
    four = spawned(4, tmp_path)
    bad = {}
    for k in names:
        for o in besides:
            try: check_equal([p[k,o] for p in four], one(k, o, 4))
            except AssertionError as e: bad[k,o] = str(e)
    assert not bad, bad
    for kind in ('fastai','torch'): assert sorted(sum([o['fed'][kind][0][0].tolist() for o in four], []))==list(range(24))

script = '''
import json
from fastai.vision.all import *
from fastai_contrastive.all import *
with process_group():
    dls = unlabeled_dls("IMGS", size=32, bs=8, num_workers=0)
    learn = contrastive_learner(dls, create_encoder("xresnet18", widen=.1), SimCLR())
    with many_processes(learn): learn.fit(1)
    ws = gather(torch.cat([o.detach().flatten() for o in learn.model.parameters()])[None])
    if not rank(): print(json.dumps(["same", len(ws), bool((ws==ws[0]).all())]))
    save_encoder(learn, "own.safetensors")
'''

@pytest.mark.slow
@pytest.mark.parametrize('n', [2,4])
@pytest.mark.parametrize('launcher', ['torchrun','accelerate'])
def test_started_as_a_user_does(launcher, n, tmp_path, synth):
    bin = Path(sys.executable).parent
    start = dict(torchrun=[bin/'torchrun','--standalone','--nproc-per-node',n], accelerate=[bin/'accelerate','launch','--multi_gpu','--num_processes',n,
        '--num_machines',1,'--mixed_precision','no','--dynamo_backend','no','--main_process_port',0])[launcher]
    (tmp_path/'script.py').write_text(script.replace('IMGS', str(synth)))
    jobs = [['script.py'], [bin/'contrastive-pretrain','--data',synth,'--size',32,'--arch','xresnet18','--arch-args','widen=.1','--objective','simclr','--bs',4,'--epochs',1,
        '--num-workers',0,'--out','run'], [bin/'contrastive-finetune','--encoder','run.safetensors','--data',synth,'--size',32,'--bs',4,'--epochs',1,'--num-workers',0]]
    outs = []
    for o in jobs:
        r = subprocess.run([str(a) for a in start+o], cwd=tmp_path, capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS':'1'})
        assert r.returncode==0, r.stdout+r.stderr
        outs.append(r.stdout)
    assert outs[0].count(json.dumps(['same',n,True]))==1 and (tmp_path/'own.safetensors').exists()
    assert outs[1].count('row:')==1 and [json.loads((tmp_path/'run.json').read_text())[k] for k in ('processes','images')]==[n,57]
    assert outs[2].count('accuracy')==2 and json.loads((tmp_path/'run.finetune.json').read_text())['processes']==n
