"CPC against the equation of arXiv 1807.03748 and the grid of arXiv 1905.09272, one prediction at a time"
import math, pytest
from utils import *
from fastai_contrastive.objectives.cpc import *

def by_hand(pred, targets, idx, scale):
    "-log exp(ŷᵀy) / Σ exp(ŷᵀy'), over all patches of the batch"
    total = 0.
    for p,i in zip(pred.double(), idx):
        s = [scale*(p@t).item() for t in targets.double()]
        total += math.log(sum(math.exp(o-s[i]) for o in s))
    return total/len(pred)

@pytest.mark.parametrize('n,m,scale', [(1,2,.1), (5,9,1.), (7,7,.3)])
def test_patch_nce(n, m, scale):
    p,t,idx = torch.randn(n,6),torch.randn(m,6)*2,torch.arange(n)*3%m
    assert abs(patch_nce(p, t, idx, scale).item()-by_hand(p, t, idx, scale))<1e-5

def test_patch_nce_gradients_are_those_of_the_kept_scores():
    a,b = [[o.clone().requires_grad_() for o in (torch.ones(3,4)*.2, torch.eye(5,4))] for _ in range(2)]
    idx = tensor([4,0,2])
    patch_nce(*a, idx, .5).backward()
    F.cross_entropy(.5*b[0]@b[1].T, idx).backward()
    for p,q in zip(a, b): assert torch.allclose(p.grad, q.grad, atol=1e-6) and p.grad.abs().sum()>0

@pytest.mark.parametrize('layers', [1,2])
def test_context_sees_no_row_below(layers):
    torch.manual_seed(0)
    net = RowContext(3, 8, layers)
    z = torch.randn(2,3,5,4)
    was = net(z)
    for row in range(5):
        x = z.clone()
        x[:,:,row] += 1
        moved = [not torch.equal(net(x)[:,:,i], was[:,:,i]) for i in range(5)]
        assert moved==[row<=i<=row+layers for i in range(5)]

# Row i, column j of a grid read from another side, as a place of the grid itself
sides = [lambda i,j,m: (i,j), lambda i,j,m: (j,m-i), lambda i,j,m: (m-i,m-j), lambda i,j,m: (m-j,i)]

@pytest.mark.parametrize('bs,n,first,steps,directions', [(3,3,2,5,4), (2,5,2,3,4), (5,4,2,9,1), (3,4,3,3,2)])
def test_loss(bs, n, first, steps, directions):
    torch.manual_seed(n)
    obj = CPC(first=first, steps=steps, directions=directions, dim=4, hidden=5, layers=2, scale=.7)
    obj.build(6)
    z = torch.randn(bs,n,n,6)
    t = obj.target(z)
    all_t,losses = [t[b,i,j] for b in range(bs) for i in range(n) for j in range(n)],[]
    for r,net in enumerate(obj.context):
        grid = torch.stack([torch.stack([torch.stack([z[b][sides[r](i,j,n-1)] for j in range(n)]) for i in range(n)]) for b in range(bs)])
        out = net(grid.permute(0,3,1,2)) # of the whole grid
        for k in range(first, min(steps, n-1)+1):
            preds,idx = [],[]
            for b in range(bs):
                for i in range(n-k):
                    for j in range(n):
                        preds.append(out[b, 4*(k-first):4*(k-first+1), i, j])
                        y,x = sides[r](i+k, j, n-1)
                        idx.append(b*n*n+y*n+x)
            losses.append(by_hand(torch.stack(preds).detach(), torch.stack(all_t).detach(), idx, .7))
    assert abs(obj.loss([z], None, None).item()-np.mean(losses))<1e-5

class Mean(nn.Module):
    "An encoder whose features are an image's mean colours"
    def forward(self, x): return x.mean((2,3))

def normed(f): return (f-f.mean(1, keepdim=True))/(f.var(1, correction=0, keepdim=True)+1e-5).sqrt()

def test_patches_lie_where_they_were():
    x = images(3, 32)[0]
    obj = CPC(p_drop=0.)
    z = obj.latents(Mean(), x)
    assert z.shape==(3,3,3,3)
    for i in range(3):
        for j in range(3): assert torch.allclose(z[:,i,j], normed(x[:,:,8*i:8*i+16,8*j:8*j+16].mean((2,3))), atol=1e-5)

@pytest.mark.parametrize('size,overlap,n', [(32,.5,3), (64,.5,7), (224,.5,7), (48,0.,3), (47,.5,4)])
def test_patches_along_a_side(size, overlap, n):
    assert CPC(overlap=overlap).latents(Mean(), torch.rand(1,3,size,size)).shape[1:3]==(n,n)

def test_channels_are_the_same_on_every_process():
    "Whatever a process's own random state; and others at the next step, but not in validation"
    obj,x = CPC().train(),images(2, 64)[0]
    def _z(seed): torch.manual_seed(seed); return obj.latents(Mean(), x)
    a = _z(0)
    assert not torch.equal(a, _z(0))
    obj.step.zero_()
    assert torch.equal(a, _z(1))
    obj.eval()
    assert torch.equal(_z(0), _z(2)) and obj.step==1

def test_out_of_memory_keeps_its_name():
    class Full(nn.Module):
        def forward(self, x): raise torch.cuda.OutOfMemoryError('CUDA out of memory')
    with pytest.raises(torch.cuda.OutOfMemoryError): CPC().latents(Full(), torch.rand(2,3,32,32))

def test_one_channel():
    torch.manual_seed(0)
    x = torch.rand(4,50,3,2,2)+.1
    assert torch.equal(one_channel(x, 0.), x)
    y = one_channel(x)
    left = y.ne(0).all(-1).all(-1)
    assert torch.equal(left.sum(2), torch.ones(4,50)) and (left==left[:1]).all() and len(left[0].float().argmax(1).unique())==3
    assert torch.equal(y[y!=0], x[y!=0])
    assert 5<(one_channel(x, .4)==x).all(-1).all(-1).all(-1)[0].sum()<45
    assert torch.equal(one_channel(x[:,:,:1]), x[:,:,:1])

@pytest.mark.parametrize('kw,msg', [(dict(overlap=1.), 'overlap must be'), (dict(first=1), 'raise first to 2'), (dict(overlap=.7), 'raise first to 4'), (dict(steps=1), 'steps must be'),
    (dict(n=2), 'n must be above first'), (dict(directions=5), 'directions must be'), (dict(scale=0.), 'scale must be'), (dict(p_drop=2.), 'p_drop'), (dict(dim=0), 'dim must be 1'), (dict(layers=0), 'layers must be 1')])
def test_bad_settings(kw, msg):
    with pytest.raises(ValueError, match=msg): CPC(**kw)

def test_bad_images():
    obj = CPC()
    with pytest.raises(ValueError, match='cpc: images of 24 pixels .* pass n=3'): obj.latents(Mean(), torch.rand(2,3,24,24))
    assert CPC(n=3).latents(Mean(), torch.rand(2,3,24,24)).shape==(2,3,3,3)
    with pytest.raises(ValueError, match='too small'): CPC(n=9).latents(Mean(), torch.rand(2,3,6,6))
    with pytest.raises(ValueError, match='at least two|two patches'): patch_nce(torch.rand(1,4), torch.rand(1,4), tensor([0]))
    with pytest.raises(ValueError, match='1 views'): obj(Mean(), [])

def test_an_encoder_for_larger_images():
    pytest.importorskip('timm')
    obj = CPC()
    with pytest.raises(ValueError, match='cpc: the encoder failed on patches of 16 pixels'): obj.latents(create_encoder('vit_tiny_patch16_224', depth=1, img_size=32), torch.rand(2,3,32,32))
