"Patches and the jigsaw puzzle: where the pieces lay, which orders there are, and what must not give the answer away"
import matplotlib
matplotlib.use('Agg')
import itertools, pytest
from utils import *
from fastai_contrastive.patches import *
from fastai_contrastive.pretext.jigsaw import *

def coded(bs, h, w): return (torch.arange(h)[:,None]*1000.+torch.arange(w)).expand(bs,1,h,w).contiguous() # A pixel says where it is

def places(ps): return (ps[...,0,0,0]//1000).long(),(ps[...,0,0,0]%1000).long()

@pytest.mark.parametrize('size', [(32,32),(33,50),(64,47)])
@pytest.mark.parametrize('grid', [2,3])
def test_pieces_lie_in_their_cells_and_anywhere_there(size, grid):
    torch.manual_seed(0)
    h,w = size
    ps = cut_grid(coded(200, h, w), grid, .2)
    p,(top,left) = ps.shape[-1],places(ps)
    at = torch.arange(p)
    assert torch.equal(ps[:,:,0], top[...,None,None]*1000.+at[:,None]*1000+left[...,None,None]+at) # Whole squares
    assert p==min(h,w)//grid-math.ceil(min(h,w)//grid*.2)
    for got,side,k in ((top,h,torch.arange(grid**2)//grid),(left,w,torch.arange(grid**2)%grid)):
        cell,edge = side//grid,side%grid//2
        free = got-k*cell-edge
        assert free.min()==0 and free.max()==cell-p and len(free[:,0].unique())==cell-p+1
    assert not torch.equal(top[:,0], top[:,1]) # Drawn for each piece

def test_crops_of_each_image():
    x = torch.randn(3,2,9,11)
    top,left = torch.randint(6, (3,4)),torch.randint(8, (3,4))
    ps = crops(x, top, left, 4)
    for b,n in itertools.product(range(3), range(4)): assert torch.equal(ps[b,n], x[b,:,top[b,n]:top[b,n]+4,left[b,n]:left[b,n]+4])

def test_orders_are_far_apart():
    "Against the search written out"
    every = list(itertools.permutations(range(4)))
    far = lambda a,b: sum(i!=j for i,j in zip(a, b))
    res = [every[0]]
    while len(res)<24: res.append(max((p for p in every if p not in res), key=lambda p: (min(far(p, r) for r in res), sum(far(p, r) for r in res))))
    assert [tuple(o) for o in far_permutations(4, 24).tolist()]==res
    ps = far_permutations(9, 9)
    assert ((ps[:,None]!=ps[None]).sum(-1)+9*torch.eye(9)==9).all() # Nine orders can differ everywhere
    assert torch.equal(far_permutations(9, 30)[:9], ps)

def test_the_answer_is_the_order():
    torch.manual_seed(0)
    task = Jigsaw(gap=0, contrast=False, grey=0, n_perms=20)
    x = torch.randn(16,3,36,36)
    was = x.clone()
    q,y = task.make(x)
    assert torch.equal(x, was) and y.dtype==torch.int64 and len(y.unique())>5
    for o,img,k in zip(q, x, y.tolist()):
        for at,piece in enumerate(task.vocab[k]):
            i,j = divmod(int(piece)-1, 3)
            assert torch.equal(o[at], img[:,12*i:12*i+12,12*j:12*j+12])

def test_own_contrast_takes_the_light_away():
    "From the mean of a piece its place cannot be told any more"
    x = (torch.linspace(0, 3, 36)[:,None]+torch.linspace(0, 9, 36)).expand(32,3,36,36)+torch.randn(32,3,36,36)*.1
    for contrast in False,True:
        torch.manual_seed(0)
        m = Jigsaw(contrast=contrast, grey=0).make(x)[0].mean((-3,-2,-1))
        assert (m.std()<1e-4)==contrast

def test_lines_do_not_go_on():
    "Right edges of pieces beside left edges of their right neighbours: the same pixel's neighbours, unless there is a gap"
    def _gaps(gap):
        left = places(cut_grid(coded(300, 36, 36), 3, gap))[1].view(-1,3,3)
        return left[:,:,1]-left[:,:,0]-piece_size(36, 3, gap)
    assert (_gaps(0)==0).all()
    d = _gaps(.25).float()
    assert d.mean()==pytest.approx(3, abs=.5) and len(d.unique())>4

def test_grey():
    x = torch.randn(400,3,24,24)
    g = (Jigsaw(grey=.3, contrast=False).make(x)[0].std(2)<1e-6).flatten(1).all(1).float().mean()
    assert .2<g<.4

@pytest.mark.parametrize('c', [1,3,5])
@pytest.mark.parametrize('bs,size', [(1,32),(5,31)])
def test_channels_sizes_and_encoders(c, bs, size):
    task,encs = Jigsaw(grid=2),[create_encoder('xresnet18', c, widen=.125)]
    encs.append(create_encoder('vit_tiny_patch16_224', c, img_size=32, patch_size=8, depth=1, embed_dim=24, num_heads=2))
    encs.append(create_encoder('vit_tiny_patch16_224', c, depth=1, embed_dim=24, num_heads=2))
    for enc in encs:
        q,y = task.make(torch.rand(bs,c,size,size))
        pred = PretextModel(enc, task.head(enc))(q)
        assert pred.shape==(bs,24)
        task.loss_func(pred, y).backward()
        assert any(p.grad is not None and p.grad.abs().sum()>0 for p in enc.parameters())

@pytest.mark.parametrize('f,msg', [(lambda: Jigsaw(grid=4), '2 or 3 pieces a side: got 4'), (lambda: Jigsaw(gap=1.), 'gap is'), (lambda: Jigsaw(grey=2), 'grey is'),
    (lambda: Jigsaw(grid=2, n_perms=25), '24 orders'), (lambda: Jigsaw().make(torch.rand(2,3,11,40)), r'Jigsaw\(\): images of 11x40.*take images of 15 pixels')])
def test_bad_input(f, msg):
    with pytest.raises(ValueError, match=msg): f()

def test_the_size_that_is_named_will_do(): assert Jigsaw().make(torch.rand(2,3,15,15))[0].shape[-1]==least_patch

def test_in_a_learner(tmp_path):
    learn = pretext_learner(make_dls(size=24, labelled=False), body(), Jigsaw(grid=2, n_perms=6), path=tmp_path)
    fit(learn, 2, 'fit', 1e-3)
    with quietly(learn):
        assert learn.validate()==learn.validate()
        learn.show_batch(max_n=2)
        assert [o.get_ylabel() for o in plt.gcf().axes[::2]]==['puzzle','solution']
        learn.show_results(max_n=3)
        assert len(plt.gcf().axes)==9 and {o.get_title() for o in plt.gcf().axes[:3]}<={'right','wrong'}
    plt.close('all')
    b = deepcopy(learn)
    assert torch.equal(ws(fit(b).model), ws(fit(learn).model))
    res = fit(make_learn(PretextTerm(Jigsaw(grid=2)), make_dls(size=24)))
    assert res.recorder.metric_names[4:6]==['jigsaw_loss','jigsaw_accuracy'] and np.isfinite(res.recorder.values[-1]).all()

def test_the_solution_is_the_picture():
    "The second row of the pictures: pieces where they were"
    task = Jigsaw(gap=0, contrast=False, grey=0, grid=2)
    x = torch.rand(3,3,16,16)
    q,y = task.make(x)
    task.show(q, y, F.one_hot(y, 24).float())
    axes = plt.gcf().axes
    for i in range(3):
        rows = [np.asarray(axes[i+3*r].images[0].get_array()) for r in range(3)]
        assert np.array_equal(rows[1], rows[2]) and axes[i].get_title()=='right'
        assert np.allclose(rows[1][1:9,1:9], x[i,:,:8,:8].permute(1,2,0)) and np.allclose(rows[1][11:19,11:19], x[i,:,8:,8:].permute(1,2,0))
    plt.close('all')
