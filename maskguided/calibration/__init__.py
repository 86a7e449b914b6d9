"""What `calibrate` is made of: closed forms, prices, and the curve of PSNR against cost."""
