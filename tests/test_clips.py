"Clips: folders of frames, what is refused, and that whoever wants images gets a frame of each clip"
import matplotlib
matplotlib.use('Agg')
import pytest, shutil
from utils import *
from fastai_contrastive.clips import *
from fastai_contrastive.frames import *
from fastai_contrastive.stats import n_channels
from fastai_contrastive.task import *
from fastai_contrastive.pretext.frame_order import *

def write(d, n, size=(20,20), first=0):
    "A clip whose frame `i` has the grey level 10*i"
    d.mkdir(parents=True)
    for i in range(n): Image.fromarray(np.full((*size,3), 10*(i+first), dtype=np.uint8)).save(d/f'f{i}.png')

@pytest.fixture
def path(tmp_path):
    for k in range(6): write(tmp_path/'clips'/('deep' if k%2 else '.')/f'c{k}', 12+k)
    return tmp_path/'clips'

def levels(x): return (x.as_subclass(Tensor)[...,0,0,0]*255/10).round().long() # Number of each frame

def dls_of(path, **kwargs): return clip_dls(path, **{**dict(size=16, bs=4, n_frames=4, num_workers=0, norm=None, device='cpu'), **kwargs})

def test_order_is_that_of_numbers(path):
    clips = clip_files(path)
    assert len(clips)==6 and all([o.name for o in c]==[f'f{i}.png' for i in range(len(c))] for c in clips)
    assert sorted(['x2y10','x10y1','x2y9','a'], key=natural_key)==['a','x2y9','x2y10','x10y1']

@pytest.mark.parametrize('n,stride', [(4,1), (3,4), (12,1)])
def test_batches_are_consecutive(path, n, stride):
    "Every `stride`-th frame from a place drawn in training, and from the middle in validation"
    dls = dls_of(path, n_frames=n, stride=stride, valid_pct=.4, seed=1)
    starts = set()
    for _ in range(6):
        for x, in dls.train:
            ks = levels(x)
            assert x.shape[1:]==(n,3,16,16) and (ks.diff(dim=1)==stride).all()
            starts |= set(ks[:,0].tolist())
    assert (0 in starts and len(starts)>3) if n<12 else max(starts)<=5
    a,b = (torch.cat([levels(x) for x, in dls.valid]) for _ in range(2))
    mid = [(len(c)-span_of(n, stride))//2 for c in dls.valid.items]
    assert torch.equal(a, b) and a[:,0].tolist()==mid
    assert not set(map(str, dls.train.items)) & set(map(str, dls.valid.items)) and len(dls.train_ds)+len(dls.valid_ds)==6

def test_a_clip_is_cut_and_mirrored_as_one(tmp_path):
    d = tmp_path/'c'/'one'
    d.mkdir(parents=True)
    ramp = np.tile(np.arange(40, dtype=np.uint8)*6, (20,1))
    for i in range(3): Image.fromarray(np.stack([ramp]*3, -1)).save(d/f'{i}.png')
    op,firsts = OpenClip(20, n_frames=3, flip=.5),set()
    for _ in range(30):
        x = op(clip_files(d.parent)[0], split_idx=0)
        assert torch.equal(x[0], x[1]) and torch.equal(x[0], x[2])
        firsts.add(int(x[0,0,0,0]))
    assert len(firsts)>10 and {int(op(clip_files(d.parent)[0], split_idx=1)[0,0,0,0]) for _ in range(5)}=={60}

def test_normalised_and_found_out(path):
    x = dls_of(path, norm=imagenet_stats).valid.one_batch()[0]
    y = dls_of(path).valid.one_batch()[0]
    mean,std = (tensor(o)[:,None,None] for o in imagenet_stats)
    assert isinstance(x, TensorClip) and torch.allclose(x.as_subclass(Tensor)*std+mean, y.as_subclass(Tensor), atol=1e-5)
    assert n_channels(dls_of(path))==3

def test_show_batch(path):
    dls_of(path).show_batch(max_n=2)
    axes = plt.gcf().axes
    assert len(axes)==2 and np.asarray(axes[0].images[0].get_array()).shape==(16,64,3)
    plt.close('all')

@pytest.mark.parametrize('make,kw,e,msg', [
    (lambda p: write(p/'short', 3), {}, ValueError, r'short has 3 frames, and 4 with a stride of 1 need 4: lower n_frames'),
    (lambda p: write(p/'short', 9), dict(n_frames=4, stride=3), ValueError, r'short has 9 frames.*need 10'),
    (lambda p: (p/'empty').mkdir(), {}, FileNotFoundError, r'no frames in .*empty: a clip is a folder of images'),
    (lambda p: shutil.rmtree(p), {}, FileNotFoundError, 'no such folder'),
    (noop, dict(n_frames=0), ValueError, 'n_frames must be a whole number, 1 or more: got 0'),
    (noop, dict(stride=1.5), ValueError, 'stride must be a whole number'),
    (noop, dict(n_frames=40), ValueError, '6 of 6 clips are as short'),
    (noop, dict(batchsize=3), TypeError, 'unknown arguments: batchsize')])
def test_what_cannot_be_opened_is_named(path, make, kw, e, msg):
    make(path)
    with pytest.raises(e, match=msg): dls_of(path, **kw)

def test_frames_of_several_sizes(path):
    write(path/'odd', 2), write(path/'odd2', 4, (30,20))
    shutil.move(path/'odd2'/'f3.png', path/'odd'/'g3.png')
    with pytest.raises(ValueError, match='odd have several sizes'): OpenClip(16, n_frames=3)(ClipFiles((path/'odd').ls().sorted()))

def test_short_clips_can_be_left_out(path):
    write(path/'short', 3)
    with pytest.warns(UserWarning, match='left out 1 of 7 clips'): dls = dls_of(path, skip_short=True)
    assert len(dls.train_ds)+len(dls.valid_ds)==6

def test_drawn_clips(tmp_path):
    p = synth_clips(tmp_path/'a', n_clips=3, n_frames=10, size=24)
    assert p==synth_clips(p, n_clips=3, n_frames=10, size=24)
    q = synth_clips(tmp_path/'b', n_clips=3, n_frames=10, size=24)
    for a,b in zip(clip_files(p), clip_files(q)): assert [o.read_bytes() for o in a]==[o.read_bytes() for o in b] and len(a)==10
    with pytest.raises(FileExistsError, match='choose another path'): synth_clips(p, n_clips=4)
    with pytest.raises(ValueError, match='n_clips must be'): synth_clips(tmp_path/'c', n_clips=0)
    assert sorted(o.name for o in tmp_path.iterdir())==['a','b']

def test_a_drawn_clip_moves_steadily():
    "What lies between is between: each frame is nearer to its neighbours than to the far end"
    x = torch.stack([tensor(np.asarray(o)).float().flatten() for o in draw_clip('star', np.random.default_rng(0), 9, 32)])
    d = torch.cdist(x, x)
    assert (d.diagonal(1)<d[0,-1]).all() and d.diagonal(1).mean()<.7*d.diagonal(4).mean()

# Frames where images are wanted

def clip_batches(n=16, bs=8, t=4, size=16, c=3):
    "Clips in which frame `i` of clip `k` is the level `i` with a trace of `k`"
    ds = [(TensorClip((torch.arange(float(t))[:,None,None,None]+k/1000).expand(t,c,size,size).contiguous()),) for k in range(n)]
    return DataLoaders.from_dsets(ds, ds, bs=bs, shuffle=False, drop_last=False, device='cpu', num_workers=0)

class Shown(Rotation):
    "Notes what it is shown"
    def __init__(self): super().__init__(); self.seen = []
    def make(self, x):
        self.seen.append(x.clone())
        return super().make(x)
del PretextTask.registry['shown']

def noted(xs): return torch.stack([o[:,0,0,0] for o in xs])

def check_seen(seen, n_train, n_valid):
    "One frame of each clip, of every kind; the same in every validation, others in every epoch"
    per,n = n_train+n_valid,len(seen)//(n_train+n_valid)
    assert n==3 and all(o.shape==(8,3,16,16) for o in seen)
    eps = [noted(seen[i*per:(i+1)*per]) for i in range(n)]
    for e in eps: assert torch.equal(((e%1)*1000).round().flatten(), torch.arange(16.).repeat(per//2))
    assert set(torch.cat([e[:n_train] for e in eps]).long().flatten().tolist())==set(range(4))
    assert not torch.equal(eps[0][:n_train], eps[1][:n_train])
    if n_valid: assert torch.equal(eps[0][n_train:], eps[1][n_train:]) and len(set(eps[0][n_train:].long().flatten().tolist()))>1

def test_a_task_gets_a_frame_of_each_clip():
    task = Shown()
    learn = pretext_learner(clip_batches(), body(), task)
    fit(learn, 3, 'fit', 0.)
    check_seen(task.seen, 2, 2)
    with quietly(learn):
        assert learn.validate()==learn.validate()
        x,_,y = learn.get_preds(with_input=True)
        assert x.shape==(16,3,16,16) and learn.get_preds(as_given=True)[0].shape==(16,4)
        learn.show_batch(max_n=2), learn.show_results(max_n=2)
    plt.close('all')

def test_a_term_gets_a_frame_of_each_clip():
    cb = PretextTerm(Shown())
    learn = pretext_learner(clip_batches(), body(), FrameOrder(), cbs=cb)
    fit(learn, 3, 'fit', 0.)
    check_seen(cb.task.seen, 2, 0)

def test_an_objective_gets_a_frame_of_each_clip():
    seen = []
    def _views(x): seen.append(x.clone().as_subclass(Tensor)); return two_views(x)
    learn = contrastive_learner(clip_batches(), body(), SimCLR(dim=8), views=_views)
    fit(learn, 3, 'fit', 0.)
    check_seen(seen, 2, 2)
    with quietly(learn): assert learn.get_preds()[0].shape==(16,12)

def test_clips_of_a_second_loader():
    "Labels of images, and the clips in a loader of their own: for a task about clips, and for one about images"
    order,turn = PretextTerm(FrameOrder(), dl=clip_batches()),PretextTerm(Shown(), dl=clip_batches(), name='turn')
    learn = fit(make_learn([order,turn], make_dls()))
    assert np.isfinite(learn.recorder.values[-1]).all() and all(o.shape==(8,3,16,16) for o in turn.task.seen)
    with pytest.raises(ValueError, match='second loader have 5 channels'): fit(make_learn(PretextTerm(FrameOrder(), dl=clip_batches(c=5))))

def test_images_are_refused_before_a_step():
    "By a learner when it is made; by a term at its first batch"
    with pytest.raises(TypeError, match=r'FrameOrder\(\) needs clips .*use clip_dls'): pretext_learner(make_dls(), body(), FrameOrder())
    learn = make_learn(PretextTerm(FrameOrder()))
    was = ws(learn.model)
    with pytest.raises(TypeError, match='needs clips.*use clip_dls'): fit(learn)
    assert torch.equal(was, ws(learn.model))
    learn = pretext_learner(clip_batches(), body(), FrameOrder())
    learn.dls = make_dls()
    with pytest.raises(TypeError, match='needs clips.*use clip_dls'): fit(learn)

def test_what_is_neither_is_refused():
    with pytest.raises(TypeError, match='need images'): check_images(torch.rand(2,3))
    with pytest.raises(TypeError, match='needs clips'): check_images('text', task=FrameOrder())
    with pytest.raises(ValueError, match='have 1 channels'): check_images(torch.rand(2,4,1,8,8), 3)
