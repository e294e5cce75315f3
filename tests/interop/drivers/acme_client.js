// Drives acme-client of the npm registry.
'use strict';

const crypto = require('crypto');
const fs = require('fs');
const path = require('path');
const acme = require('acme-client');

const JOB = JSON.parse(process.argv[2]);
const IP = '127.0.0.1';
const done = { version: require('acme-client/package.json').version, files: {}, deeds: [] };

function keep(deed, pem) {
    const file = path.join(JOB.folder, `${deed.replace(' ', '-')}.pem`);
    fs.writeFileSync(file, pem);
    done.files[deed] = file;
}

async function present(authorization, challenge, keyAuthorization) {
    const name = authorization.identifier.value;
    if (challenge.type === 'http-01') {
        fs.writeFileSync(path.join(JOB.challenges, challenge.token), keyAuthorization);
    } else if (challenge.type === 'dns-01') {
        fs.appendFileSync(path.join(JOB.records, `_acme-challenge.${name}`), `${keyAuthorization}\n`);
    } else {
        const key = await acme.crypto.createPrivateEcdsaKey();
        const [, certificate] = await acme.crypto.createAlpnCertificate(authorization, keyAuthorization, key);
        fs.writeFileSync(path.join(JOB.alpn, `${name}.key.pem`), key);
        fs.writeFileSync(path.join(JOB.alpn, `${name}.crt.pem`), certificate);
    }
}

async function obtain(client, names, kind) {
    const [, csr] = await acme.crypto.createCsr({ altNames: names }, await acme.crypto.createPrivateEcdsaKey());
    const order = await client.createOrder({
        identifiers: names.map((name) => ({ type: name === IP ? 'ip' : 'dns', value: name })),
    });
    for (const authorization of await client.getAuthorizations(order)) {
        if (authorization.status === 'valid') continue;
        const challenge = authorization.challenges.find((each) => each.type === kind);
        await present(authorization, challenge, await client.getChallengeKeyAuthorization(challenge));
        await client.completeChallenge(challenge);
        await client.waitForValidStatus(authorization);
    }
    return client.getCertificate(await client.finalizeOrder(order, csr));
}

async function main() {
    const client = new acme.Client({
        directoryUrl: JOB.directory,
        accountKey: await acme.crypto.createPrivateEcdsaKey(),
        externalAccountBinding: { kid: JOB.eab.kid, hmacKey: JOB.eab.hmac_key },
        backoffMin: 200,
        backoffMax: 1000,
    });
    await client.createAccount({ termsOfServiceAgreed: true, contact: ['mailto:hostmaster@example.test'] });
    done.deeds.push('EAB');
    keep('issue', await obtain(client, [JOB.host], 'http-01'));
    await client.updateAccountKey(await acme.crypto.createPrivateRsaKey());
    done.deeds.push('key roll');
    const renewed = await obtain(client, [JOB.host], 'http-01');
    keep('renew', renewed);
    keep('tls-alpn-01', await obtain(client, [`t.${JOB.host}`], 'tls-alpn-01'));
    keep('wildcard', await obtain(client, [`*.w.${JOB.host}`], 'dns-01'));
    keep('IP', await obtain(client, [IP], 'http-01'));
    await client.revokeCertificate(renewed.split(/(?<=-----END CERTIFICATE-----)/)[0]);
    keep('revoke', renewed);
    console.log(JSON.stringify(done));
}

main().catch((error) => {
    console.error(error);
    process.exit(1);
});
