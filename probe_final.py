import torch, math
import sys; sys.path.insert(0,"/tmp"); from whence.numerics.linalg import block_cg
from whence.errors import WhenceError
torch.set_num_threads(1)
def spd(P, cond, seed=0, dtype=torch.float64, spacing="log"):
    g=torch.Generator().manual_seed(seed)
    Q=torch.linalg.qr(torch.randn(P,P,generator=g,dtype=torch.float64))[0]
    w=torch.logspace(-math.log10(cond),0,P,dtype=torch.float64) if spacing=="log" else torch.linspace(1/cond,1,P,dtype=torch.float64)
    A=(Q*w)@Q.T; return ((A+A.T)/2).to(dtype)
def go(name,A,B,tol,steps=5000,**k):
    calls=[0,0]
    def prod(s): calls[0]+=1; calls[1]+=len(s); return s@A
    try:
        r=block_cg(prod,B,tolerance=tol,max_steps=steps,**k)
        x=torch.linalg.solve(A.double(),B.double().T).T
        n=B.double().norm(dim=1).clamp_min(1e-300)
        print(f"{name:34s} steps {r.steps} rows {calls[1]} res {float(r.residuals.max()):.1e} err {float(((r.solution.double()-x).norm(dim=1)/x.norm(dim=1).clamp_min(1e-300)).max()):.1e}")
    except WhenceError as e: print(f"{name:34s} {type(e).__name__}: {str(e)[:230]!r} calls {calls}")
r=lambda K,P,s=1,d=torch.float64: torch.randn(K,P,generator=torch.Generator().manual_seed(s),dtype=torch.float64).to(d)
for c in (1e2,1e4,1e6):
  for sp in ("log","lin"):
    for K in (1,8,32):
      go(f"P300 cond{c:.0e} {sp} K{K}",spd(300,c,spacing=sp),r(K,300),1e-11)
A=spd(60,1e4)
go("K>P 100x60 c1e4",A,r(100,60),1e-11); go("K=P c1e6",spd(60,1e6),r(60,60),1e-11); go("K>P c1e6",spd(60,1e6),r(200,60),1e-11)
B=r(4,300); A=spd(300,1e4)
go("dups",A,torch.cat([B,B,B[:1]*1e-9,torch.zeros(1,300,dtype=torch.float64)]),1e-11)
for e in (1e-3,1e-6,1e-9,1e-12,1e-14): go(f"near dup {e}",A,torch.cat([B,B+e*r(4,300,5)]),1e-11)
sc=torch.tensor([1e-12,1,1e8,1e-150]).double()[:,None]
go("scales",A,B*sc,1e-11)
go("tiny 1e-200",A,B*1e-200,1e-11); go("all zero",A,B*0,1e-11)
ev=torch.linalg.eigh(A)[1].T
go("eigvecs + random",A,torch.cat([ev[:3],B]),1e-11)
go("f32 c1e2",spd(300,1e2,dtype=torch.float32),r(8,300,d=torch.float32),1e-6)
go("f32 c1e4",spd(300,1e4,dtype=torch.float32),r(8,300,d=torch.float32),1e-5)
go("f32 c1e4 tol 1e-6",spd(300,1e4,dtype=torch.float32),r(8,300,d=torch.float32),1e-6)
I=spd(300,1e3); I=I-0.5*ev[:1].T@ev[:1]; go("indef",I,B,1e-8)
S=ev[50:].T@torch.diag(torch.linspace(.1,1,250).double())@ev[50:]
go("sing. consistent",S,B@S,1e-8); go("sing. inconsistent",S,B,1e-8)
go("few steps",A,B,1e-11,steps=10)
for f in (torch.nan,): go("nan rhs",A,torch.cat([B,torch.full((1,300),torch.nan,dtype=torch.float64)]),1e-8)
