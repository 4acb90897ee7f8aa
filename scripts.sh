#!/usr/bin/env bash
# AA-CLIP's sequence with real weights and data: train on VisA's test split, test on the others, and the reverse.
# AACLIP_DATA names the folder of the datasets; model/ViT-L-14-336px.pt or AACLIP_CLIP_WEIGHTS the weights.
# Published figures are of epoch 15: add --epoch 15 to test.py, or --all for every epoch.
set -euo pipefail
cd "$(dirname "$0")"

python train.py --dataset VisA --training_mode full_shot --save_path ckpt/baseline_visa
for dataset in MVTec BTAD MPDD Brain Liver Retina Colon_clinicDB Colon_colonDB Colon_Kvasir Colon_cvc300; do
    python test.py --dataset "$dataset" --save_path ckpt/baseline_visa
done

python train.py --dataset MVTec --training_mode full_shot --save_path ckpt/baseline_mvtec
python test.py --dataset VisA --save_path ckpt/baseline_mvtec
