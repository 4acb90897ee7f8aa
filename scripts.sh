#!/usr/bin/env bash
# The field's protocol with real weights and data: train on VisA's test split, test on the others, and the reverse.
# AACLIP_DATA names the folder of the datasets; model/ViT-L-14-336px.pt or AACLIP_CLIP_WEIGHTS the weights.
set -euo pipefail
cd "$(dirname "$0")"

python train.py --dataset VisA --training_mode full_shot --save_path ckpt/baseline_visa
python train_cross_attention.py --dataset VisA --training_mode full_shot --save_path ckpt/cross_attention_visa
for run in baseline_visa cross_attention_visa; do
    for dataset in MVTec BTAD MPDD Brain Liver Retina Colon_clinicDB Colon_colonDB Colon_Kvasir Colon_cvc300; do
        python test.py --dataset "$dataset" --save_path "ckpt/$run"
    done
done

python train.py --dataset MVTec --training_mode full_shot --save_path ckpt/baseline_mvtec
python train_cross_attention.py --dataset MVTec --training_mode full_shot --save_path ckpt/cross_attention_mvtec
for run in baseline_mvtec cross_attention_mvtec; do
    python test.py --dataset VisA --save_path "ckpt/$run"
done
