"The order of frames: that the answer is the order, that forwards is backwards, and what must not give it away"
import matplotlib
matplotlib.use('Agg')
import itertools, pytest
from utils import *
from fastai_contrastive.clips import TensorClip
from fastai_contrastive.pretext.frame_order import *

def clips(bs, t, c=3, size=16): return torch.arange(float(t))[:,None,None,None].expand(bs,t,c,size,size).contiguous() # Frame `i` is full of `i`

def shown(task, bs=400, t=7):
    torch.manual_seed(0)
    q,y = task.make(clips(bs, t))
    assert (q==q[:,:,:1,:1,:1]).all()
    return q[:,:,0,0,0].long(),y

@pytest.mark.parametrize('n,directed', [(2,True), (3,False), (4,False), (4,True), (5,False)])
def test_the_answer_is_the_order(n, directed):
    task = FrameOrder(n=n, directed=directed)
    ks,y = shown(task)
    assert len(task.vocab)==math.factorial(n)//(1 if directed else 2) and set(y.tolist())==set(range(len(task.vocab)))
    for k,i in zip(ks, y.tolist()):
        place = ' '.join(str(o+1) for o in k.argsort().argsort().tolist())
        back = ' '.join(str(o+1) for o in k.flip(0).argsort().argsort().tolist())
        assert task.vocab[i]==place or (not directed and task.vocab[i]==back)
    assert len({tuple(k.sort()[0].tolist()) for k in ks})>1 # Which frames of the clip is drawn, too

def test_in_order_or_not():
    ks,y = shown(FrameOrder('valid'), t=9)
    a,b,c = ks.unbind(1)
    between = ((a<b)&(b<c)) | ((a>b)&(b>c))
    assert torch.equal(between, y==1) and .4<y.float().mean()<.6
    assert .4<(a<c).float().mean()<.6 # Forwards and backwards
    below = (b<torch.minimum(a, c))[y==0].float().mean()
    assert .4<below<.6

def test_first_and_last_say_nothing():
    "The ends of a question are drawn alike, in order or not"
    ks,y = shown(FrameOrder('valid'), 4000, t=5)
    ends = ks[:,[0,2]].sort(1)[0]
    assert (ends==tensor([1,3])).all()

def test_one_channel():
    x = torch.rand(60,4,3,8,8)
    torch.manual_seed(0)
    q = one_of_channels(x)
    which = (q[:,:,:1]==x).flatten(3).all(3).all(1)
    assert torch.equal(which.sum(1), torch.ones(60).long()) and len(which.float().argmax(1).unique())==3
    assert (q==q[:,:,:1]).all()
    assert (FrameOrder().make(x)[0].std(2)<1e-6).all() and not (FrameOrder(one_channel=False).make(x)[0].std(2)<1e-6).all()

def test_frames_are_shifted_each_by_itself():
    torch.manual_seed(0)
    x = (torch.arange(20)[:,None]*100.+torch.arange(20)).expand(100,1,20,20).contiguous()
    s = shifted(x, 2)
    top,left = (s[:,0,10,10]//100-10).long(),(s[:,0,10,10]%100-10).long()
    assert set(top.tolist())==set(left.tolist())=={-2,-1,0,1,2}
    for o,i,j in zip(s, top.tolist(), left.tolist()):
        want = F.pad(x[:1], (2,)*4, mode='replicate')[0,:,2+i:22+i,2+j:22+j]
        assert torch.equal(o, want)
    q = FrameOrder(jitter=.1).make(x[:20].view(5,4,1,20,20))[0][:,:,0,10,10]
    assert not (q==q[:,:1]).all() and (FrameOrder(jitter=0).make(x[:20].view(5,4,1,20,20))[0][:,:,0,10,10]==1010).all()

@pytest.mark.parametrize('f,e,msg', [(lambda: FrameOrder('order'), ValueError, "'which' .order. or 'valid'"), (lambda: FrameOrder(n=2), ValueError, 'n is a number of frames'),
    (lambda: FrameOrder(n=6), ValueError, 'up to 5.*got 6'), (lambda: FrameOrder('valid', n=4), ValueError, 'shows 3 frames'), (lambda: FrameOrder(jitter=.5), ValueError, 'jitter is'),
    (lambda: FrameOrder().make(torch.rand(2,3,3,8,8)), ValueError, r'draws 4 frames of a clip, and the clips have 3: .*n_frames=4'),
    (lambda: FrameOrder().make(torch.rand(2,3,8,8)), TypeError, 'needs clips .*clip_dls')])
def test_bad_input(f, e, msg):
    with pytest.raises(e, match=msg): f()

@pytest.mark.parametrize('c', [1,3,5])
@pytest.mark.parametrize('bs', [1,3])
def test_channels(c, bs):
    x,task = torch.rand(bs,5,c,17,23),FrameOrder()
    was,enc = x.clone(),create_encoder('xresnet18', c, widen=.125)
    q,y = task.make(x)
    assert torch.equal(x, was) and q.shape==(bs,4,c,17,23)
    pred = PretextModel(enc, task.head(enc))(q)
    assert pred.shape==(bs,12) and torch.isfinite(task.loss_func(pred, y))

def make_clips(n=16):
    g = torch.Generator().manual_seed(0)
    ds = [(TensorClip(torch.rand(1,3,16,16, generator=g)*torch.linspace(.2, 1, 5)[:,None,None,None]),) for _ in range(n)]
    return DataLoaders.from_dsets(ds, ds, bs=8, shuffle=False, device='cpu', num_workers=0)

@pytest.mark.parametrize('kind', ['which','valid'])
def test_in_a_learner(kind, tmp_path):
    learn = pretext_learner(make_clips(), body(), FrameOrder(kind), path=tmp_path)
    fit(learn, 1, 'fit', 1e-3)
    with quietly(learn):
        assert learn.validate()==learn.validate()
        learn.show_batch(max_n=2)
        assert plt.gcf().axes[0].get_title() in learn.pretext.task.vocab
        learn.show_results(max_n=2)
        assert learn.get_preds()[0].shape==(16,len(learn.pretext.task.vocab))
    plt.close('all')
    assert torch.equal(ws(fit(deepcopy(learn)).model), ws(fit(learn).model))

def test_brightness_is_learnt():
    "Frames that grow brighter: 12 orders are told apart after a moment"
    learn = pretext_learner(make_clips(64), body(), FrameOrder(n=3, one_channel=False))
    fit(learn, 12, 'fit_one_cycle', 1e-2)
    assert col(learn, 'accuracy')>.6
